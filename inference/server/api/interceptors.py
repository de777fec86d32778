"""The interceptor of every call: request id, trace context, events, and conversion of errors to gRPC status."""

import asyncio
import contextvars
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import grpc

from common import errors
from common.clock import Clock
from inference.server.access import Access, Metadata, certificate_name
from inference.server.api.reading import Context, Handler, read_in_turn
from inference.server.events import CallEnded, CallStarted, Emit
from inference.server.request import NO_TAGS, RequestTags
from inference.server.scheduling.fair_queue import UNNAMED, Caller, CallerRules
from inference.server.scheduling.held_bytes import HeldBytes

if TYPE_CHECKING:
    from inference.server.trace_events import CallTracer

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
MODEL_VERSION = "x-model-version"  # the version that is to answer
ROUTING_KEY = "x-routing-key"  # of whom a request is about: its requests go to one revision
MAX_NAME_CHARS = 128  # of a caller; the rest is ignored
MAX_TAG_CHARS = 256  # of the two above; the rest is ignored
_ID_DIGITS, _DRAWN_IDS = 32, 128  # of an id; ids that are drawn at once
_RANDOM_DIGITS = 8  # as in common.traces, which is not loaded without traces
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
CANCEL_SECONDS = 0.5  # within which gRPC reports that a caller has left, after a write has failed
_REQUEST_ID_FORM = re.compile(r"[!-~]{1,128}")
# W3C: version ff, and ids of zeros alone, are invalid; such a header is ignored.
_TRACEPARENT_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_ARRIVAL_SECONDS = 0.1  # a call's way to the server
_ARRIVAL_SHARE = 0.2  # of the timeout, at most
_ROUNDING = 0.01  # of the timeout
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# As in go-grpc-prometheus, for example OK or InvalidArgument.
_CODE_NAMES = {code: "".join(part.capitalize() for part in code.name.split("_")) for code in grpc.StatusCode}
_CODE_NAMES[grpc.StatusCode.OK] = "OK"

Behaviour = Callable[[Any, Any], Any]


@dataclass(slots=True)
class Call:
    """One call, from its metadata to its CallEnded event."""

    service: str
    method: str
    kind: str
    request_id: str
    traceparent: str
    started: float  # clock.monotonic()
    is_echoed: bool  # the caller sent an id or a trace
    timeout: float | None  # seconds until its deadline at its start; None: it has none
    tags: RequestTags = NO_TAGS
    received: int = 0
    sent: int = 0
    reason: str = ""
    caller: Caller = UNNAMED.caller
    details: list[Any] = field(default_factory=list)  # further messages for the details of an error status
    fields: dict[str, object] = field(default_factory=dict)  # log fields set by the handler


current_call: contextvars.ContextVar[Call] = contextvars.ContextVar("current_call")


class CallInterceptor:
    """Does around each call what is the same for all methods."""

    def __init__(
        self,
        clock: Clock,
        emit: Emit,
        report: Callable[[str, BaseException], None],
        callers: "Callers",
        held: HeldBytes | None = None,
        access: Access | None = None,
        tracer: "CallTracer | None" = None,
    ) -> None:
        """Make an interceptor.

        Args:
            clock: of the calls.
            emit: gets their events.
            report: gets unexpected errors, with the name of the method.
            callers: with their rights.
            held: messages are read when there is room for them; None: at once.
            access: authenticates the calls; None: all are let in.
            tracer: decides which calls are recorded; None: none are.
        """
        self._clock = clock
        self._callers = callers
        self._held = held
        self._access = access
        self._emit = emit
        self._report = report
        self._tracer = tracer

    def wrap(self, handler: Handler, service: str, method: str) -> Handler:
        """The handler of a method with all that is done for every call; done once, when the server is made."""
        kind = _kind_of(handler)
        if self._held is not None:
            handler = read_in_turn(handler, self._held, self._clock)
        behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        inner = self._wrap_behaviour(next(one for one in behaviours if one is not None), service, method, kind)
        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        return make(inner, handler.request_deserializer, handler.response_serializer)

    def _wrap_behaviour(self, behaviour: Behaviour, service: str, method: str, kind: str) -> Behaviour:
        started = CallStarted(service, method, kind)
        traced_below = "" if self._tracer is None else self._tracer.sampled_below(service)

        async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401  gRPC's messages
            metadata = context.invocation_metadata() or ()
            call = self._begin(context, metadata, started, traced_below)
            code = grpc.StatusCode.OK
            try:
                self._identify(context, metadata, call)
                if call.kind != "unary":
                    await self._send_ids(context, call)
                response = await behaviour(request, context)
                if call.kind == "unary":  # a client sends no call again that has received headers
                    await self._send_ids(context, call)
            except asyncio.CancelledError:
                code = _cancel_code(context)
                raise
            except grpc.aio.AbortError:
                code = _CODES.get(_code_number(context.code()), grpc.StatusCode.UNKNOWN)
                raise
            except grpc.aio.InternalError:  # a message could not be written: the caller has left
                code = _cancel_code(context)
                await asyncio.sleep(CANCEL_SECONDS)  # gRPC cancels this task meanwhile
                raise
            except Exception as error:  # noqa: BLE001  every error becomes a status
                known = self._convert_error(error, call)
                code = _CODES[errors.get_code(known)]
                call.reason = known.reason
                known.__traceback__ = None  # see the end of this function
                await _abort(context, known, call)
            else:
                return response
            finally:
                self._end(call, code)
                # gRPC keeps the error of an aborted call, and the traceback of an error its frames: what they refer to
                # would stay, with all that gRPC has received of the call, until the garbage collector finds the cycle.
                del request, context

        return handle

    def _begin(self, context: Context, metadata: Metadata, event: CallStarted, traced_below: str) -> Call:
        request_id = traceparent = version = routing_key = ""
        for key, value in metadata:
            if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID_FORM.fullmatch(value):
                request_id = value
            elif key == TRACEPARENT and isinstance(value, str) and _TRACEPARENT_FORM.fullmatch(value):
                traceparent = value
            elif key == MODEL_VERSION:
                version = _add_value(version, value)
            elif key == ROUTING_KEY:
                routing_key = _add_value(routing_key, value)
        is_echoed = bool(request_id or traceparent)
        call_id = request_id or new_request_id()
        started, timeout = self._clock.monotonic(), context.time_remaining()
        trace = None
        if self._tracer is not None and (is_echoed or call_id[-_RANDOM_DIGITS:] < traced_below):
            trace = self._tracer.begin(event.service, call_id, traceparent)
        tags = RequestTags(call_id, "", routing_key, version, trace)
        kind = event.kind
        call = Call(event.service, event.method, kind, call_id, traceparent, started, is_echoed, timeout, tags)
        if kind == "unary":
            call.received = 1
        current_call.set(call)
        self._emit(event)
        return call

    def _identify(self, context: Context, metadata: Metadata, call: Call) -> None:
        """Find the caller; nothing of the call's messages has been read yet.

        Raises:
            Unauthenticated: the call needs a token, and shows none that is valid.
        """
        access = self._access
        if access is None:
            call.caller = self._callers.find(metadata, context.peer())
            return
        token = access.authenticate(call.service, metadata)
        certificate = certificate_name(context.auth_context()) if access.has_names else ""
        if access.has_names and not certificate:
            metadata = ()  # a certificate without a name is no proxy's, so its holder names nobody
        call.caller = self._callers.find(metadata, context.peer(), token, certificate)
        if token or certificate:
            call.fields["caller"] = call.caller.name

    async def _send_ids(self, context: Context, call: Call) -> None:
        """Echo the caller's ids as initial metadata; send a generated id in the trailers, without an extra message."""
        if not call.is_echoed:
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            return
        traceparent = ((TRACEPARENT, call.traceparent),) if call.traceparent else ()
        sending = context.send_initial_metadata(((REQUEST_ID, call.request_id), *traceparent))
        if self._held is None:
            await sending
        else:
            await self._held.unread.write(context.peer(), sending)

    def _end(self, call: Call, code: grpc.StatusCode) -> None:
        if call.kind == "unary" and code is grpc.StatusCode.OK:
            call.sent = 1
        now = self._clock.monotonic()
        ended = CallEnded(
            service=call.service,
            method=call.method,
            kind=call.kind,
            code="OK" if code is grpc.StatusCode.OK else _CODE_NAMES[code],
            seconds=now - call.started,
            request_id=call.request_id,
            traceparent=call.traceparent,
            reason=call.reason,
            received=call.received,
            sent=call.sent,
            fields=tuple(call.fields.items()),
        )
        self._emit(ended)
        if call.tags.trace is not None:
            call.tags.trace.end(ended, now)

    def _convert_error(self, error: Exception, call: Call) -> errors.HotslotError:
        if isinstance(error, errors.HotslotError):
            return error
        self._report(f"{call.service}/{call.method}", error)
        return errors.Failed("internal error; see the server log for this request id", reason="INTERNAL")


class Callers:
    """Finds the caller of a call: by its token, else its certificate, the configured metadata key, its connection.

    The metadata key goes before the certificate of a proxy, which is the same for all callers of that proxy.
    """

    def __init__(
        self, rules: Iterable[CallerRules], metadata_key: str, now: float, proxy_certificates: Iterable[str] = ()
    ) -> None:
        self._configured: Mapping[str, Caller] = {}
        self._alive = weakref.WeakValueDictionary[str, Caller]()  # also those that only an open stream refers to
        self._find_unconfigured = lru_cache(maxsize=1024)(self._find_alive)  # a connection has many calls
        self.configure(rules, metadata_key, now, proxy_certificates)

    def configure(
        self, rules: Iterable[CallerRules], metadata_key: str, now: float, proxy_certificates: Iterable[str] = ()
    ) -> None:
        """Replace the rights of all callers; quotas stay used as they are, and open streams have the new rights, too.

        Args:
            rules: of the configured callers.
            metadata_key: whose value names the caller.
            now: the clock, seconds.
            proxy_certificates: names of the certificates whose holders are trusted to tell their callers.
        """
        self._key, self._proxies = metadata_key.lower(), frozenset(proxy_certificates)
        rows = {row.name: row for row in rules}
        configured = {name: self._find_alive(name) for name in rows}
        for name, caller in list(self._alive.items()):
            caller.configure(rows.get(name) or CallerRules(name), now)
        self._configured = configured

    def find(self, metadata: Metadata, peer: str, token_name: str = "", certificate_name: str = "") -> Caller:
        """The caller of a call.

        Args:
            metadata: of the call.
            peer: address of its connection, as gRPC writes it.
            token_name: to whom its token was given; empty without one.
            certificate_name: of the client's certificate; empty without one.
        """
        name = token_name
        if not name and certificate_name not in self._proxies:
            name = certificate_name
        if not name and self._key:
            name = self._read_name(metadata)
        name = (name or certificate_name)[:MAX_NAME_CHARS] or peer
        return self._configured.get(name) or self._find_unconfigured(name)

    def _read_name(self, metadata: Metadata) -> str:
        """The value of the metadata key; empty if there are several: the caller sent one, its proxy added another."""
        values = {value for key, value in metadata if key == self._key and value}
        name = values.pop() if len(values) == 1 else ""
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else name

    def _find_alive(self, name: str) -> Caller:
        caller = self._alive.get(name)
        if caller is None:
            caller = self._alive[name] = Caller(CallerRules(name))
        return caller


def _add_value(before: str, value: str | bytes) -> str:
    """The value of a key after one more; different ones are a list, as proxies join them, so that none is chosen."""
    text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip()[:MAX_TAG_CHARS]
    if not before or not text or text == before:
        return text or before
    return f"{before},{text}"[:MAX_TAG_CHARS]


def _draw_ids() -> Iterator[str]:
    """Random ids without end; the system is asked for many at once, because that is a system call."""
    while True:
        digits = os.urandom(_DRAWN_IDS * _ID_DIGITS // 2).hex()
        for at in range(0, len(digits), _ID_DIGITS):
            yield digits[at : at + _ID_DIGITS]


_ids = _draw_ids()


def new_request_id() -> str:
    """A request id for a call without one: 128 random bits, hexadecimal. Loop thread only."""
    return next(_ids)


async def _abort(context: Context, error: errors.HotslotError, call: Call) -> None:
    status = errors.to_status(error, *call.details)
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if not call.is_echoed or call.kind == "unary":
        trailers.append((REQUEST_ID, call.request_id))
    if call.traceparent and call.kind == "unary":
        trailers.append((TRACEPARENT, call.traceparent))
    if error.retry_after_seconds is not None:
        trailers.append((PUSHBACK_KEY, str(errors.to_milliseconds(error.retry_after_seconds))))
    try:
        await context.abort(_CODES[status.code], status.message, tuple(trailers))
    except grpc.aio.InternalError:  # the caller has left
        await asyncio.sleep(CANCEL_SECONDS)  # gRPC logs the error as its own unless it knows that the caller has left
        raise
    finally:
        del context  # as in `handle`


def _code_number(code: Any) -> int:  # noqa: ANN401  grpc.aio returns an int where the stubs say StatusCode
    return int(code.value[0]) if isinstance(code, grpc.StatusCode) else int(code)


def has_reached_deadline(context: Context) -> bool:
    """Whether a call that ends now by cancellation has reached its deadline."""
    return is_deadline_reached(context.time_remaining(), current_call.get().timeout)


def is_deadline_reached(left: float | None, timeout: float | None) -> bool:
    """Whether a cancelled call with `left` of `timeout` seconds was ended by its deadline and not by its caller.

    The caller's clock ends it earlier than the server's: gRPC rounds the timeout up, by 1 % at most, and it starts here
    when the call has arrived.
    """
    if left is None or timeout is None:
        return False
    return left <= min(_ARRIVAL_SECONDS, _ARRIVAL_SHARE * timeout) + _ROUNDING * timeout


def _cancel_code(context: Context) -> grpc.StatusCode:
    return grpc.StatusCode.DEADLINE_EXCEEDED if has_reached_deadline(context) else grpc.StatusCode.CANCELLED


def _kind_of(handler: Handler) -> str:
    """The kind of a method in metrics; one that reads its only message itself is unary."""
    if not handler.response_streaming:
        return "unary"
    return "bidi_stream" if handler.request_streaming else "server_stream"


_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
