"""Reads the messages of callers when there is room for them in memory."""

import asyncio
import contextlib
import contextvars
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from functools import partial
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from common.clock import Clock
from common.errors import HotslotError, InputRefused
from inference.server.request import PendingRequest
from inference.server.scheduling.held_bytes import HeldBytes
from inference.server.scheduling.uploads import Stream, Upload, WatchCall

HALF_CLOSE_SECONDS = 0.003  # for so long a cancelled call looks like a half-closed one: gRPC reports the rest later
Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic only in the type stubs


class MessageReader:
    """The messages of one call; a `with` block while the call is open."""

    def __init__(self, context: Context, held: HeldBytes, clock: Clock, *, is_small: bool = False) -> None:
        self._context = context
        self._is_small = is_small
        self._held = held
        self._clock = clock
        self._connection: str = context.peer()
        self.stream: Stream | None = None  # set by the call, if it is one

    def __enter__(self) -> Self:
        self._held.open_call(self._connection)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._held.close_call(self._connection)

    async def read(self) -> bytes | None:
        """The next message; None if there is none: the caller has half-closed the call.

        Raises:
            HotslotError: the server cannot hold it, it has not arrived in time, or an idle stream is ended.
        """
        upload = _Arrival(self._connection, self.stream, is_small=self._is_small)
        raw: bytes | None = None
        can_begin = self._held.ask(upload, self._clock.monotonic())
        try:
            if not can_begin:
                await upload.wait_turn()
            raw = await upload.receive(self._context.read())
        finally:
            upload.wait = None  # an error's traceback refers to `upload`: a cycle would keep the call in memory
            self._held.finish(upload, None if raw is None else len(raw))
        if raw is None:
            await asyncio.sleep(HALF_CLOSE_SECONDS)
        return raw

    async def read_only(self) -> bytes:
        """The message of a unary call. Like any gRPC server, it ignores what follows.

        Raises:
            HotslotError: as `read`.
            InputRefused: there is none.
        """
        raw = await self.read()
        if raw is None:
            raise InputRefused("the call has no message", reason="MESSAGE_MALFORMED")
        return raw

    async def write(self, message: object) -> None:
        """Write a message of a stream, as its context does; it counts as unread until the caller has taken it."""
        await self._held.unread.write(self._connection, self._context.write(message))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A `with` block around the rest of a call that has no further message; the server may end it for others.

        Raises:
            NotReady: it was ended.
        """
        task = asyncio.current_task()
        watch = _TaskWatch(self._connection, task)
        self._held.open_watch(watch)
        try:
            yield
        except asyncio.CancelledError:
            if watch.error is None:
                raise
            if task is not None:
                task.uncancel()
            raise watch.error from None
        finally:
            self._held.close_watch(watch)

    @property
    def is_memory_short(self) -> bool:
        """Whether complete messages hold much of the memory that there is for them."""
        return self._held.is_short

    def hold_message(self, raw: bytes, *, has_copies: bool) -> memoryview:
        """Count a message as held, until the result is released, because its items are not accepted yet.

        With copies of its pictures and texts, if there are any.
        """
        view = memoryview(raw)
        self._held.hold(self._connection, view, (1 + has_copies) * len(raw))
        return view

    def hold(self, request: PendingRequest) -> None:
        """Count an accepted request as held until its picture, or its texts, are gone from memory."""
        holder = request.payload.holder
        if holder is not None:
            self._held.hold(self._connection, holder, request.size_bytes)


class _Arrival(Upload):
    """A message that arrives through gRPC."""

    __slots__ = ("wait",)

    def __init__(self, connection: str, stream: Stream | None, *, is_small: bool) -> None:
        Upload.__init__(self, connection, stream, is_small=is_small)
        self.wait: _Wait | None = None  # what its reader awaits

    @types.coroutine
    def wait_turn(self) -> Generator[object, None, None]:
        """Wait until the message may be read."""
        self.wait = _Wait(asyncio.get_running_loop().create_future())
        yield self.wait

    @types.coroutine
    def receive(self, read: Coroutine[Any, None, object]) -> Generator[object, None, bytes | None]:
        """Await gRPC's `read` without ever cancelling it: gRPC leaks a message that arrives after a cancelled read.

        A reader that is cancelled, or ended by `on_end`, leaves `read` to itself. A task for it would do the same at
        several times the cost.
        """
        while True:
            try:
                received: asyncio.Future[object] = read.send(None)
            except StopIteration as done:
                return done.value if isinstance(done.value, bytes) else None
            self.wait = _Wait(received)
            try:
                yield self.wait
            except BaseException as error:
                if received.done() and not received.cancelled() and received.exception() is error:
                    continue  # `read` raises it, or takes it for the end of the call
                received.add_done_callback(partial(_finish, read))
                raise

    def on_turn(self) -> None:
        """Go on: it may be read now."""
        if self.wait is not None and not self.wait.future.done():
            self.wait.future.set_result(None)

    def on_end(self, error: HotslotError) -> None:
        """Raise the error in its reader."""
        if self.wait is not None:
            self.wait.end(error)


class _TaskWatch(WatchCall):
    """A watch that its task answers."""

    __slots__ = ("_task", "error")

    def __init__(self, connection: str, task: "asyncio.Task[Any] | None") -> None:
        WatchCall.__init__(self, connection)
        self._task = task
        self.error: HotslotError | None = None

    def on_end(self, error: HotslotError) -> None:
        """Raise the error where its task waits."""
        self.error = error
        if self._task is not None:
            self._task.cancel()


class _Wait:
    """What a reader's task awaits: a future, or an end that comes before. The future itself is never cancelled."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_wake", "future")

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        future._asyncio_future_blocking = False  # noqa: SLF001  as a task does with what it is to await
        self._asyncio_future_blocking = True
        self.future = future

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """As of a future."""
        return self.future.get_loop()

    def add_done_callback(
        self, wake: "Callable[[asyncio.Future[Any]], None]", *, context: contextvars.Context | None = None
    ) -> None:
        """As of a future: called once, by the task that awaits it."""
        self._wake, self._context = wake, context
        self.future.add_done_callback(wake, context=context)

    def cancel(self, msg: object = None) -> bool:
        """Cancel the task that awaits it."""
        return self.end(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def end(self, error: BaseException) -> bool:
        """Raise an error in the task that awaits it; returns False if the future is done."""
        if self.future.done() or not self.future.remove_done_callback(self._wake):
            return False
        end = self.get_loop().create_future()
        end.set_exception(error)
        end.add_done_callback(self._wake, context=self._context)
        return True


def _finish(read: Coroutine[Any, None, object], _: object) -> None:
    """Let an abandoned `read` free what it has received."""
    with contextlib.suppress(BaseException):
        read.send(None)


def read_in_turn(handler: Handler, held: HeldBytes, clock: Clock) -> Handler:
    """The same method, with messages that are counted as held.

    They are small: those with pictures or texts have handlers without a deserializer. So an observer's call is not
    refused for what callers hold.

    gRPC itself reads the message of a unary call before any handler runs, whatever its size. A handler without a
    deserializer reads for itself.
    """
    parse = handler.request_deserializer
    if handler.request_streaming and (parse is None or not handler.response_streaming):
        return handler
    behaviour: Any = handler.stream_stream or handler.unary_stream or handler.unary_unary

    async def call(_messages: object, context: Context) -> Any:  # noqa: ANN401  gRPC's messages
        with MessageReader(context, held, clock, is_small=True) as reader:
            if handler.request_streaming:
                return await behaviour(_parse_all(reader, parse), _WriteContext(reader))
            request = _parse(await reader.read_only(), parse)
            if not handler.response_streaming:
                return await behaviour(request, context)
            with reader.watching():
                return await behaviour(request, _WriteContext(reader))

    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(call, None, handler.response_serializer)


class _WriteContext:
    """What the handler of an observer's stream uses of its context."""

    def __init__(self, reader: MessageReader) -> None:
        self.write = reader.write


async def _parse_all(reader: MessageReader, parse: "Callable[[bytes], Any] | None") -> AsyncIterator[Any]:
    while (raw := await reader.read()) is not None:
        yield _parse(raw, parse)


def _parse(raw: bytes, parse: "Callable[[bytes], Any] | None") -> Any:  # noqa: ANN401  gRPC's messages
    try:
        return raw if parse is None else parse(raw)
    except DecodeError as error:
        raise InputRefused("the message does not parse", reason="MESSAGE_MALFORMED") from error
