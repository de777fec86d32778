"""Makes gRPC servers that a call with a malformed method name cannot stop.

The task of grpc.aio that accepts calls decodes the name of each call's method. A name that is not UTF-8 ends this task,
and with it the listener: after one frame of one client no caller was answered any more. Calls of registered methods do
not take this way, since gRPC's core compares their names as bytes. So all methods are registered, and all other calls
are refused here, without their name.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, without types

OnFailure = Callable[[BaseException], None]


class AioServer(cygrpc.AioServer):  # type: ignore[misc]  # the library's own base of grpc.aio.Server, without types
    """The accepting side of a server; `tests/server/test_grpc_server.py` shows that the library still calls this."""

    on_failure: OnFailure | None = None
    _refusals: "set[asyncio.Task[None]] | None" = None

    async def _request_call(self) -> None:
        """Refuse the next call of a method that is not registered.

        Raises:
            cygrpc._RequestCallError: always; the library goes on with the next call.
        """
        state = await super()._request_call()
        refusal = asyncio.create_task(_refuse(state))
        self._refusals = self._refusals or set()
        self._refusals.add(refusal)
        refusal.add_done_callback(self._refusals.discard)
        raise cygrpc._RequestCallError  # noqa: SLF001

    def _serving_task_crash_handler(self, task: "asyncio.Task[None]") -> None:
        super()._serving_task_crash_handler(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self.on_failure is not None:
            self.on_failure(error)


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    options: Sequence[tuple[str, Any]],
    handlers: Iterable[grpc.GenericRpcHandler],
    on_failure: OnFailure,
) -> grpc.aio.Server:
    """Make a server of these services.

    Args:
        interceptors: of all calls.
        options: channel arguments.
        handlers: of services that are in the default descriptor pool.
        on_failure: called when the server accepts no calls any more, although nobody has stopped it.
    """
    library = cygrpc.AioServer
    cygrpc.AioServer = AioServer  # which grpc.aio.server takes, and offers no other way to choose
    try:
        server = grpc.aio.server(interceptors=list(interceptors), options=options)
    finally:
        cygrpc.AioServer = library
    cast("Any", server)._server.on_failure = on_failure  # noqa: SLF001
    for handler in handlers:
        service = cast("grpc.ServiceRpcHandler", handler).service_name()
        server.add_registered_method_handlers(service, _list_methods(service, handler))
    return server


def _list_methods(service: str, handler: grpc.GenericRpcHandler) -> dict[str, Any]:
    """The handler of each method of a service."""
    names = descriptor_pool.Default().FindServiceByName(service).methods_by_name
    details = {name: SimpleNamespace(method=f"/{service}/{name}", invocation_metadata=()) for name in names}
    found = {name: handler.service(cast("Any", details[name])) for name in names}
    return {name: method for name, method in found.items() if method is not None}


async def _refuse(state: object) -> None:
    context = cygrpc._ServicerContext(state, None, None, asyncio.get_running_loop())  # noqa: SLF001
    with contextlib.suppress(grpc.aio.AbortError, grpc.aio.InternalError):  # the latter: the caller has left
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
