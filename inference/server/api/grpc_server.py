"""Makes gRPC servers that a call with a malformed method name cannot stop.

The task of grpc.aio that accepts calls decodes the name of each call's method. A name that is not UTF-8 ends this task,
and with it the listener: after one frame of one client no caller was answered any more. Calls of registered methods do
not take this way, since gRPC's core compares their names as bytes. So all methods are registered, and all other calls
are refused here, without their name.

The library waits for the next call of all methods together: for each call it builds and takes apart a wait over all of
them, which costs more the more methods there are. Here each method accepts its own calls.
"""

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, without types

from inference.server.api.reading import Handler

OnFailure = Callable[[BaseException], None]
Wrap = Callable[[Handler, str, str], Handler]


class OpenCalls:
    """The calls of a server that gRPC keeps, each until its caller has taken the whole answer, or has left."""

    def __init__(self) -> None:
        self.contexts: dict[asyncio.Task[None], Any] = {}

    @property
    def count(self) -> int:
        """All of them; from any thread."""
        return len(self.contexts)

    def find_answered(self) -> Mapping[Hashable, str]:
        """Those whose status is on its way to their callers, with gRPC's names of these."""
        # The context of a task that is done refers to a call that gRPC has freed.
        calls = ((task, context) for task, context in self.contexts.items() if not task.done())
        return {task: context.peer() for task, context in calls if context.done()}


class AioServer(cygrpc.AioServer):  # type: ignore[misc]  # the library's own base of grpc.aio.Server, without types
    """The accepting side of a server; `tests/server/test_grpc_server.py` shows that the library still calls this."""

    on_failure: OnFailure | None = None
    open_calls: OpenCalls
    _resolvers: "Mapping[str, _Resolver]" = MappingProxyType({})
    _accepting: "asyncio.Future[None] | None" = None  # done when one of the tasks that accept calls has ended

    def add_registered_method_handlers(self, method_handlers: Mapping[str, Any]) -> None:
        """Accept calls of these methods, by full name, too."""
        super().add_registered_method_handlers(method_handlers)
        self._resolvers = {**self._resolvers, **{name: _Resolver(one) for name, one in method_handlers.items()}}

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[None]":
        """Begin to accept the calls of a method; None: of those that are not registered.

        The library calls it once for each method, and awaits what it returns, which is the same for all.
        """
        if self._accepting is None or self._accepting.done():
            self._accepting = asyncio.get_running_loop().create_future()
        accept = self._refuse_calls() if method is None else self._accept_calls(method)
        task = asyncio.get_running_loop().create_task(accept)
        task.add_done_callback(partial(_end_accepting, self._accepting))
        return self._accepting

    async def _accept_calls(self, method: bytes) -> None:
        """Let each call of a method be answered in a task of its own, until the server stops."""
        name = method.decode()
        resolver, loop = self._resolvers[name], asyncio.get_running_loop()
        handler = resolver.handler
        is_own_reader = handler.stream_unary is not None and handler.request_deserializer is None
        calls = self.open_calls.contexts  # the loop itself keeps no task alive
        while True:
            try:
                state = await self._request_registered_call(method)
            except cygrpc._RequestCallError:  # noqa: SLF001
                if not self.is_running():
                    return
                continue
            context = cygrpc._ServicerContext(state, None, None, loop)  # noqa: SLF001
            if is_own_reader:  # without the library's search for the handler, and its reader of messages
                answer = cygrpc._finish_handler_with_unary_response(  # noqa: SLF001
                    state, handler.stream_unary, None, context, handler.response_serializer, loop
                )
            else:
                answer = cygrpc._handle_rpc(name, resolver, (), state, loop, False)  # noqa: SLF001
            task = loop.create_task(cygrpc._schedule_rpc_coro(answer, state, loop, name))  # noqa: SLF001
            calls[task] = context
            task.add_done_callback(calls.pop)

    async def _refuse_calls(self) -> None:
        """Refuse all calls of methods that are not registered, until the server stops."""
        refusals, loop = self.open_calls.contexts, asyncio.get_running_loop()
        while True:
            try:
                state = await self._request_call()
            except cygrpc._RequestCallError:  # noqa: SLF001
                if not self.is_running():
                    return
                continue
            context = cygrpc._ServicerContext(state, None, None, loop)  # noqa: SLF001
            refusal = loop.create_task(_refuse(context))
            refusals[refusal] = context
            refusal.add_done_callback(refusals.pop)

    def _serving_task_crash_handler(self, task: "asyncio.Task[None]") -> None:
        super()._serving_task_crash_handler(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self.on_failure is not None:
            self.on_failure(error)


class _Resolver:
    """Finds the handler of one method, as the library asks for it."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def resolve_handler(self, _details: object) -> Handler:
        """The handler."""
        return self.handler


def _end_accepting(accepting: "asyncio.Future[None]", task: "asyncio.Task[None]") -> None:
    """Report to the library that a task has ended that accepts calls: with its error, or as the server stops."""
    error = None if task.cancelled() else task.exception()
    if accepting.done():
        return
    accepting.set_exception(error or cygrpc._RequestCallError())  # noqa: SLF001


def make_server(
    wrap: Wrap | None,
    options: Sequence[tuple[str, Any]],
    handlers: Iterable[grpc.GenericRpcHandler],
    on_failure: OnFailure,
    open_calls: OpenCalls | None = None,
) -> grpc.aio.Server:
    """Make a server of these services.

    Args:
        wrap: makes of each handler, with the names of its service and method, the one that answers; None: itself.
        options: channel arguments.
        handlers: of services that are in the default descriptor pool.
        on_failure: called when the server accepts no calls any more, although nobody has stopped it.
        open_calls: is to have the server's calls; None: nobody asks for them.
    """
    library = cygrpc.AioServer
    cygrpc.AioServer = AioServer  # which grpc.aio.server takes, and offers no other way to choose
    try:
        server = grpc.aio.server(options=options)
    finally:
        cygrpc.AioServer = library
    accepting: AioServer = cast("Any", server)._server  # noqa: SLF001
    accepting.on_failure, accepting.open_calls = on_failure, open_calls or OpenCalls()
    for handler in handlers:
        service = cast("grpc.ServiceRpcHandler", handler).service_name()
        methods = _list_methods(service, handler)
        if wrap is not None:
            methods = {name: wrap(method, service, name) for name, method in methods.items()}
        server.add_registered_method_handlers(service, methods)
    return server


def _list_methods(service: str, handler: grpc.GenericRpcHandler) -> dict[str, Handler]:
    """The handler of each method of a service."""
    names = descriptor_pool.Default().FindServiceByName(service).methods_by_name
    details = {name: SimpleNamespace(method=f"/{service}/{name}", invocation_metadata=()) for name in names}
    found = {name: handler.service(cast("Any", details[name])) for name in names}
    return {name: method for name, method in found.items() if method is not None}


async def _refuse(context: Any) -> None:  # noqa: ANN401  gRPC's context
    with contextlib.suppress(grpc.aio.AbortError, grpc.aio.InternalError):  # the latter: the caller has left
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
