"""One socket of a runner on the loop: frames in and out, never blocking, nothing copied that need not be."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from itertools import islice

from inference.wire import FrameDecoder, FrameError, unsent

READ_BYTES = 64 << 10  # replies are small; a larger buffer would be mapped and unmapped for each read
MAX_PARTS = 64  # of one send; far below the system's IOV_MAX


class FrameChannel:
    """A socket that the loop reads and writes directly.

    asyncio's own transports can only be made in a coroutine and copy what a send leaves over; this
    one is there at once and keeps views. Loop thread only.

    Args:
        way: its own from now on; made non-blocking.
        on_frame: called with each frame's payload; may close the channel.
        on_end: called once, when the other side has ended (with "") or cannot be understood (with why);
            not called after `close`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        way: socket.socket,
        on_frame: Callable[[bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        way.settimeout(0)
        self._loop = loop
        self._way = way
        self._on_frame = on_frame
        self._on_end = on_end
        self._decoder = FrameDecoder()
        self._frames = 0
        self._waiting: list[memoryview] = []
        self._is_armed = False  # whether the loop tells when the socket can take more
        self._is_finishing = False
        self._is_open = True
        loop.add_reader(way, self._read)

    @property
    def is_open(self) -> bool:
        """Whether anything can still come from the other side."""
        return self._is_open

    @property
    def amid_frame(self) -> int | None:
        """Number of the frame whose rest is still to come; None between two frames."""
        return self._frames if self._decoder.is_amid_frame else None

    def send(self, parts: Sequence[bytes]) -> None:
        """Send one frame's parts; what the socket does not take now waits here."""
        if not self._is_open or self._is_finishing:
            return
        self._waiting.extend(memoryview(part) for part in parts)
        if not self._is_armed:
            self._write()

    def finish(self) -> None:
        """Say that nothing more will be sent, once what waits is sent; reading goes on."""
        self._is_finishing = True
        if self._is_open and not self._waiting:
            self._shut()

    def close(self) -> None:
        """Let go of the socket; a second time is harmless."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._way)
        self._loop.remove_writer(self._way)
        self._waiting.clear()
        self._way.close()

    def _read(self) -> None:
        try:
            data = self._way.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a reset is an end like any other
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
                sent = self._way.sendmsg(islice(self._waiting, MAX_PARTS))
            except BlockingIOError:
                self._arm(is_wanted=True)
                return
            except OSError:
                self._waiting.clear()  # the other side is gone; reading will tell
                break
            self._waiting = unsent(self._waiting, sent)
        self._arm(is_wanted=False)
        if self._is_finishing:
            self._shut()

    def _arm(self, *, is_wanted: bool) -> None:
        if is_wanted and not self._is_armed:
            self._loop.add_writer(self._way, self._write)
        elif self._is_armed and not is_wanted:
            self._loop.remove_writer(self._way)
        self._is_armed = is_wanted

    def _shut(self) -> None:
        try:
            self._way.shutdown(socket.SHUT_WR)
        except OSError:
            return  # gone already; reading will tell

    def _end(self, trouble: str) -> None:
        self.close()
        self._on_end(trouble)
