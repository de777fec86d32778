"""A gRPC caller over hand-written HTTP/2 that misbehaves: stops in a message, hangs up, reads no answer."""

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from dev.harness import http2

WINDOW_BYTES = 65_535  # of a connection and of a stream, until the server changes it
FRAME_BYTES = 16_384
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK = 1, 1
_INITIAL_WINDOW = 4  # number of the setting
_CANCEL = 8  # error code


class CallEndedError(Exception):
    """The server has ended the call, or the connection is gone."""


class _Stream:
    def __init__(self, window: int) -> None:
        self.window = window
        self.has_ended = False
        self.has_answer = False


class Http2Caller:
    """One connection with any number of calls. An `async with` block; leaving it closes the connection at once.

    Args:
        port: of the server on this host.
        reads: whether answers are read; if not, the server may send each call and the connection only one window.
        window: how many bytes the server may send each call before `take`; None: the usual number.
    """

    def __init__(self, port: int, *, reads: bool = True, window: int | None = None) -> None:
        self._port = port
        self._reads = reads
        self._settings = {} if window is None else {http2.INITIAL_WINDOW_SIZE: window}
        self._ids = itertools.count(1, 2)
        self._streams: dict[int, _Stream] = {}
        self._window = WINDOW_BYTES
        self._stream_window = WINDOW_BYTES
        self._changed = asyncio.Condition()
        self._is_open = True

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(http2.opening(self._settings))
        self._receiving = asyncio.create_task(self._receive())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receiving.cancel()
        self._writer.transport.abort()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self._receiving

    def open(self, path: str, metadata: Mapping[str, str] | None = None) -> int:
        """Begin a call; returns its number."""
        number = next(self._ids)
        self._streams[number] = _Stream(self._stream_window)
        self._writer.write(http2.headers(path, number, metadata))
        return number

    async def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send bytes of a call's messages as the server grants windows.

        Raises:
            CallEndedError: the server has ended the call; the rest was not sent.
        """
        stream, at = self._streams[number], 0
        while at < len(data):
            async with self._changed:
                await self._changed.wait_for(lambda: not self._can_wait(stream))
            if stream.has_ended or not self._is_open:
                raise CallEndedError
            count = min(len(data) - at, FRAME_BYTES, stream.window, self._window)
            stream.window -= count
            self._window -= count
            flags = _END_STREAM if end and at + count == len(data) else 0
            self._writer.write(http2.frame(_DATA, flags, number, data[at : at + count]))
            at += count
            await self._writer.drain()

    def take(self, number: int, count: int = WINDOW_BYTES) -> None:
        """Let the server send so many more bytes of a call's answer."""
        self._writer.write(http2.frame(_WINDOW_UPDATE, 0, number, struct.pack(">I", count)))

    def reset(self, number: int) -> None:
        """Cancel a call."""
        self._streams[number].has_ended = True
        self._writer.write(http2.frame(_RESET, 0, number, struct.pack(">I", _CANCEL)))

    @property
    def ended(self) -> int:
        """Calls that the server has ended; all of them if it has closed the connection."""
        return len(self._streams) if not self._is_open else sum(one.has_ended for one in self._streams.values())

    async def wait_closed(self) -> None:
        """Wait until the server has closed the connection."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_open)

    async def wait_answer(self, number: int) -> None:
        """Wait until the server has begun to answer a call, or has ended it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._streams[number].has_answer or not self._is_open)

    def _can_wait(self, stream: _Stream) -> bool:
        return self._is_open and not stream.has_ended and min(stream.window, self._window) <= 0

    async def _receive(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                number = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                payload = await self._reader.readexactly(length)
                self._take(kind, flags, number, payload)
                async with self._changed:
                    self._changed.notify_all()
        except (asyncio.IncompleteReadError, OSError):
            self._is_open = False
            async with self._changed:
                self._changed.notify_all()

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        if kind == _SETTINGS and not flags & _ACK:
            self._set(payload)
            self._writer.write(http2.frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._writer.write(http2.frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            self._grant(number, int.from_bytes(payload, "big"))
        elif kind == _DATA and self._reads and payload:
            for scope in (0, number):
                self._writer.write(http2.frame(_WINDOW_UPDATE, 0, scope, struct.pack(">I", len(payload))))
        if stream is not None and kind in (_DATA, _HEADERS, _RESET):
            stream.has_answer = True
            stream.has_ended = stream.has_ended or kind == _RESET or bool(flags & _END_STREAM)

    def _grant(self, number: int, count: int) -> None:
        if number == 0:
            self._window += count
        elif number in self._streams:
            self._streams[number].window += count

    def _set(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack(">HI", payload[at : at + 6])
            if name == _INITIAL_WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value


def message(payload: bytes, *, is_compressed: bool = False) -> bytes:
    """A gRPC message: a flag, its length, its bytes."""
    return bytes([is_compressed]) + struct.pack(">I", len(payload)) + payload
