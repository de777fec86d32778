"""What every call goes through: request id, trace context, one event a call, and errors in gRPC's words."""

import asyncio
import contextvars
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

from common import errors
from common.clock import Clock
from inference.server.events import CallEnded, CallStarted, Emit

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
_REQUEST_ID_FORM = re.compile(r"[!-~]{1,128}")
_TRACEPARENT_FORM = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Any], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a generic for the types alone


@dataclass(slots=True)
class Call:
    """One call, from its metadata to its event."""

    service: str
    method: str
    kind: str
    request_id: str
    traceparent: str
    started: float  # clock.monotonic()
    is_echoed: bool  # the caller sent an id or a trace
    received: int = 0
    sent: int = 0
    reason: str = ""
    details: list[Any] = field(default_factory=list)  # further messages for an error's details
    fields: dict[str, object] = field(default_factory=dict)  # what the handler notes for the log


current_call: contextvars.ContextVar[Call] = contextvars.ContextVar("current_call")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler once; the wrapped handlers are kept by method name."""

    def __init__(self, clock: Clock, emit: Emit, report: Callable[[str, BaseException], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._report = report
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Give gRPC the wrapped handler of a method; unknown methods stay gRPC's own UNIMPLEMENTED."""
        path = handler_call_details.method
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            service, _, method = path.lstrip("/").partition("/")
            wrapped = self._wrapped[path] = self._wrap(handler, service, method)
        return wrapped

    def _wrap(self, handler: Handler, service: str, method: str) -> Handler:
        if handler.request_streaming:
            inner = self._around(_as_coroutine(handler.stream_stream), service, method, "bidi_stream")
            return grpc.stream_stream_rpc_method_handler(
                inner, handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            inner = self._around(_as_coroutine(handler.unary_stream), service, method, "server_stream")
            return grpc.unary_stream_rpc_method_handler(
                inner, handler.request_deserializer, handler.response_serializer
            )
        inner = self._around(handler.unary_unary or _nothing, service, method, "unary")
        return grpc.unary_unary_rpc_method_handler(inner, handler.request_deserializer, handler.response_serializer)

    def _around(self, behaviour: Behaviour, service: str, method: str, kind: str) -> Behaviour:
        async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401  gRPC's own messages
            call = self._begin(context, service, method, kind)
            code = grpc.StatusCode.OK
            try:
                await _tell_id(context, call)
                response = await behaviour(request, context)
            except asyncio.CancelledError:
                code = _cancel_code(context)
                raise
            except grpc.aio.AbortError:
                code = _CODES.get(_number(context.code()), grpc.StatusCode.UNKNOWN)
                raise
            except Exception as error:  # noqa: BLE001  the last door: whatever it is becomes a status
                known = self._known(error, call)
                code = _CODES[errors.get_code(known)]
                call.reason = known.reason
                await _abort(context, known, call)
            else:
                return response
            finally:
                self._end(call, code)

        return handle

    def _begin(self, context: Context, service: str, method: str, kind: str) -> Call:
        request_id = traceparent = ""
        for key, value in context.invocation_metadata() or ():
            if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID_FORM.fullmatch(value):
                request_id = value
            elif key == TRACEPARENT and isinstance(value, str) and _TRACEPARENT_FORM.fullmatch(value):
                traceparent = value
        is_echoed = bool(request_id or traceparent)
        call_id = request_id or new_request_id()
        call = Call(service, method, kind, call_id, traceparent, self._clock.monotonic(), is_echoed)
        if kind == "unary":
            call.received = 1
        current_call.set(call)
        self._emit(CallStarted(service, method, kind))
        return call

    def _end(self, call: Call, code: grpc.StatusCode) -> None:
        if call.kind == "unary" and code is grpc.StatusCode.OK:
            call.sent = 1
        self._emit(
            CallEnded(
                service=call.service,
                method=call.method,
                kind=call.kind,
                code=code_name(code),
                seconds=self._clock.monotonic() - call.started,
                request_id=call.request_id,
                traceparent=call.traceparent,
                reason=call.reason,
                received=call.received,
                sent=call.sent,
                fields=tuple(call.fields.items()),
            )
        )

    def _known(self, error: Exception, call: Call) -> errors.HotslotError:
        if isinstance(error, errors.HotslotError):
            return error
        self._report(f"{call.service}/{call.method}", error)
        return errors.Failed("an error inside the server; its log knows more under this request id", reason="INTERNAL")


def new_request_id() -> str:
    """A name for a call whose caller gave none: 128 random bits."""
    return secrets.token_hex(16)


def code_name(code: grpc.StatusCode) -> str:
    """A code as go-grpc-prometheus writes it, for example OK or InvalidArgument."""
    if code is grpc.StatusCode.OK:
        return "OK"
    return "".join(part.capitalize() for part in code.name.split("_"))


async def _abort(context: Context, error: errors.HotslotError, call: Call) -> None:
    status = errors.to_status(error, *call.details)
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if not call.is_echoed:
        trailers.append((REQUEST_ID, call.request_id))
    if error.retry_after_seconds is not None:
        trailers.append((PUSHBACK_KEY, str(int(error.retry_after_seconds * 1000))))
    await context.abort(_CODES[status.code], status.message, tuple(trailers))


async def _tell_id(context: Context, call: Call) -> None:
    """Echo what the caller sent before the answer; an id that we made goes behind it, which costs no message."""
    if not call.is_echoed:
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
    elif call.traceparent:
        await context.send_initial_metadata(((REQUEST_ID, call.request_id), (TRACEPARENT, call.traceparent)))
    else:
        await context.send_initial_metadata(((REQUEST_ID, call.request_id),))


def _number(code: Any) -> int:  # noqa: ANN401  aio says an int where the types say StatusCode
    return int(code.value[0]) if isinstance(code, grpc.StatusCode) else int(code)


async def _nothing(_request: object, _context: object) -> None:
    raise RuntimeError("a method has no handler")


def _cancel_code(context: Context) -> grpc.StatusCode:
    left = context.time_remaining()
    return grpc.StatusCode.DEADLINE_EXCEEDED if left is not None and left <= 0 else grpc.StatusCode.CANCELLED


def _as_coroutine(behaviour: Behaviour | None) -> Behaviour:
    """Let a handler that yields write instead, so that all are wrapped alike."""
    if behaviour is None:
        raise RuntimeError("a method's handler has no behaviour")
    if asyncio.iscoroutinefunction(behaviour):
        return behaviour

    async def write_all(request: Any, context: Context) -> None:  # noqa: ANN401  gRPC's own messages
        async for response in behaviour(request, context):
            await context.write(response)

    return write_all
