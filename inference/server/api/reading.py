"""Reads the messages of callers when there is room for them in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from common.clock import Clock
from common.errors import HotslotError, InputRefused
from inference.server.request import PendingRequest
from inference.server.scheduling.held_bytes import HeldBytes, Stream, Upload

HALF_CLOSE_SECONDS = 0.003  # for so long a cancelled call looks like a half-closed one: gRPC reports the rest later
Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic only in the type stubs


class MessageReader:
    """The messages of one call; a `with` block while the call is open."""

    def __init__(self, context: Context, held: HeldBytes, clock: Clock) -> None:
        self._context = context
        self._held = held
        self._clock = clock
        self._connection: str = context.peer()
        self.stream: Stream | None = None  # set by the call, if it is one

    def __enter__(self) -> Self:
        self._held.open_call(self._connection)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close_call(self._connection)

    async def read(self) -> bytes | None:
        """The next message; None if there is none: the caller has half-closed the call.

        Raises:
            HotslotError: the server cannot hold it, it has not arrived in time, or an idle stream is ended.
        """
        upload = _Arrival(self._connection, self.stream)
        raw = None
        can_begin = self._held.ask(upload, self._clock.monotonic())
        try:
            if not can_begin:
                await upload.wait_turn()
            raw = await upload.receive(self._context, self._held)
        finally:
            upload.future = None  # an error's traceback refers to `upload`: a cycle would keep the call in memory
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

    def hold(self, request: PendingRequest) -> None:
        """Count an accepted request as held until its picture is gone from memory."""
        picture = request.payload.image
        if isinstance(picture, memoryview):
            self._held.hold(self._connection, picture, request.size_bytes)


class _Arrival(Upload):
    """A message that arrives through gRPC."""

    __slots__ = ("future", "task")

    def __init__(self, connection: str, stream: Stream | None) -> None:
        super().__init__(connection, stream)
        self.future: asyncio.Future[bytes | None] | None = None  # what its reader awaits

    async def wait_turn(self) -> None:
        self.future = asyncio.get_running_loop().create_future()
        await self.future

    async def receive(self, context: Context, held: HeldBytes) -> bytes | None:
        loop = asyncio.get_running_loop()
        self.future = loop.create_future()
        # In a task of its own: gRPC never frees a message that arrives for a reader that was cancelled.
        self.task = loop.create_task(_receive(context, self.future, held))
        return await self.future

    def on_turn(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def on_end(self, error: HotslotError) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


async def _receive(context: Context, future: "asyncio.Future[bytes | None]", held: HeldBytes) -> None:
    """Give the next message of a call to its reader, unless that has ended."""
    try:
        raw = await context.read()
        if isinstance(raw, bytes):
            held.count_arrived(len(raw))
    except Exception as error:  # noqa: BLE001  it belongs to the reader
        if not future.done():
            future.set_exception(error)
        return
    if not future.done():
        future.set_result(raw if isinstance(raw, bytes) else None)


def read_in_turn(handler: Handler, held: HeldBytes, clock: Clock) -> Handler:
    """The same method, with messages that are read when there is room for them.

    gRPC itself reads the message of a unary call before any handler runs, whatever its size. A handler without a
    deserializer reads for itself.
    """
    parse = handler.request_deserializer
    if handler.request_streaming and (parse is None or not handler.response_streaming):
        return handler
    behaviour: Any = handler.stream_stream or handler.unary_stream or handler.unary_unary

    async def call(_messages: object, context: Context) -> Any:  # noqa: ANN401  gRPC's messages
        with MessageReader(context, held, clock) as reader:
            if handler.request_streaming:
                request: Any = _parse_all(reader, parse)
            else:
                request = _parse(await reader.read_only(), parse)
            return await behaviour(request, context)

    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(call, None, handler.response_serializer)


async def _parse_all(reader: MessageReader, parse: "Callable[[bytes], Any] | None") -> AsyncIterator[Any]:
    while (raw := await reader.read()) is not None:
        yield _parse(raw, parse)


def _parse(raw: bytes, parse: "Callable[[bytes], Any] | None") -> Any:  # noqa: ANN401  gRPC's messages
    try:
        return raw if parse is None else parse(raw)
    except DecodeError as error:
        raise InputRefused("the message does not parse", reason="MESSAGE_MALFORMED") from error
