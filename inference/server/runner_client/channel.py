"""Frames over one non-blocking socket of a runner, on the event loop, without extra copies."""

import asyncio
import socket
from collections.abc import Callable, Sequence

from inference.wire import FrameDecoder, FrameError, Picture, unsent

READ_BYTES = 64 << 10  # replies are small; a larger buffer would be mapped and unmapped for each read
MAX_PARTS = 64  # buffers per sendmsg; far below IOV_MAX


class FrameChannel:
    """A socket that the loop reads and writes directly. Loop thread only.

    asyncio's transports can only be created in a coroutine, and copy what a send leaves over; this one is
    usable at once and keeps memory views.

    Args:
        connection: owned by the channel; made non-blocking.
        on_frame: called with the payload of each frame; may close the channel.
        on_end: called once, when the peer has closed (with "") or has sent invalid data (with the reason);
            not called after `close`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        on_frame: Callable[[bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        connection.settimeout(0)
        self._loop = loop
        self._connection = connection
        self._on_frame = on_frame
        self._on_end = on_end
        self._decoder = FrameDecoder()
        self._frames = 0
        self._waiting: list[memoryview] = []  # the rest of each part that is not sent
        self._parts: list[Picture] = []  # those parts: an object that is alive is counted as held
        self._unsent_bytes = 0  # of them
        self._is_armed = False  # whether the loop watches for writability
        self._is_finishing = False
        self._is_open = True
        loop.add_reader(connection, self._read)

    @property
    def is_open(self) -> bool:
        """Whether frames can still arrive."""
        return self._is_open

    @property
    def amid_frame(self) -> int | None:
        """Number of the frame that has arrived in part; None between two frames."""
        return self._frames if self._decoder.is_amid_frame else None

    def send(self, parts: Sequence[Picture]) -> None:
        """Send the parts of one frame; buffers what the socket does not accept now."""
        if not self._is_open or self._is_finishing:
            return
        self._unsent_bytes += sum(map(len, parts))
        self._parts.extend(parts)
        self._waiting.extend(map(memoryview, parts))
        if not self._is_armed:
            self._write()

    def finish(self) -> None:
        """Shut down writing once the buffer is sent; reading continues."""
        self._is_finishing = True
        if self._is_open and not self._waiting:
            self._shut_down_writing()

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._clear()
        self._connection.close()

    def _read(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a reset is treated as end of stream
        if not data:
            self._end("")
            return
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            self._end(str(error))
            return
        self._frames += len(frames)
        for payload in frames:
            if self._is_open:
                self._on_frame(payload)

    def _write(self) -> None:
        while self._waiting:
            try:
                sent = self._connection.sendmsg(self._waiting[:MAX_PARTS])
            except BlockingIOError:
                self._watch_writability(is_wanted=True)
                return
            except OSError:
                self._clear()  # the peer is gone; the next read reports it
                break
            self._unsent_bytes -= sent
            if not self._unsent_bytes:
                self._clear()
                break
            self._waiting = unsent(self._waiting, sent)
            del self._parts[: len(self._parts) - len(self._waiting)]
        if self._is_armed:
            self._watch_writability(is_wanted=False)
        if self._is_finishing:
            self._shut_down_writing()

    def _clear(self) -> None:
        self._unsent_bytes = 0
        self._waiting.clear()
        self._parts.clear()

    def _watch_writability(self, *, is_wanted: bool) -> None:
        if is_wanted and not self._is_armed:
            self._loop.add_writer(self._connection, self._write)
        elif self._is_armed and not is_wanted:
            self._loop.remove_writer(self._connection)
        self._is_armed = is_wanted

    def _shut_down_writing(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the peer is gone; the next read reports it

    def _end(self, reason: str) -> None:
        self.close()
        self._on_end(reason)
