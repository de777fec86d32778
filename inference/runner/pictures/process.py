"""The runner's side of a decoder process: start, one picture at a time, and the end of one that takes too long."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from common.clock import Clock, read_cpu_seconds_of
from inference.runner.pictures.channel import (
    DROP,
    ESTIMATED,
    GO_ON,
    OVERRUN_FACTOR,
    READY,
    REFUSED,
    RESPONSE,
    DecodeRequest,
    Response,
    unpack_response,
)
from inference.runner.pictures.cost import Cost
from inference.runner.pictures.file import PictureRefused
from inference.wire import unsent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # (side, side, 3), RGB
else:
    Pixels = object  # as in `engines.base`

TICK_SECONDS = 0.02  # between two looks at a decoder that computes
START_SECONDS = 30.0  # until a decoder is ready
FIXED_LIMIT_SECONDS = 0.15  # CPU time beside OVERRUN_FACTOR times the estimate
_MODULE = "inference.runner.pictures.decoder"


class EndCause(Enum):
    """Why a decoder has ended."""

    CRASHED = "crashed"  # by itself, or killed by the system
    GONE = "gone"  # before it had read the picture, which has no part in it
    TOO_SLOW = "too slow"  # killed: the picture took much longer than its estimate
    STARVED = "starved"  # killed: the picture took too long because the process got too little CPU time
    UNWANTED = "unwanted"  # killed: nobody waits for the picture


class DecoderEnded(Exception):
    """The process has ended, and has to be replaced."""

    def __init__(self, cause: EndCause) -> None:
        super().__init__(f"a decoder has ended: {cause.value}")
        self.cause = cause


class PictureDropped(Exception):
    """The picture is not decoded now: another time, or never, because nobody waits for it."""


class DecoderProcess:
    """One decoder. Used by one thread at a time.

    It has to be started on a thread that lives as long as the runner: the kernel ends it with that thread.
    """

    def __init__(self, clock: Clock, wall_seconds: float) -> None:
        """Start the process.

        Args:
            clock: for the limit on time.
            wall_seconds: the longest that a picture may take by the clock.

        Raises:
            OSError: the system has no process or descriptor left.
        """
        self._clock = clock
        self._wall_seconds = wall_seconds
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(TICK_SECONDS)
        with theirs:
            command = [sys.executable, "-P", "-m", _MODULE, f"--fd={theirs.fileno()}", f"--parent={os.getpid()}"]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.idle_since = clock.monotonic()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it can take requests.

        Raises:
            DecoderEnded: it did not start.
        """
        end = self._clock.monotonic() + START_SECONDS
        self._receive_into(
            memoryview(bytearray(len(READY))), lambda: EndCause.TOO_SLOW if self._clock.monotonic() > end else None
        )

    def close(self) -> None:
        """End the process. A second call does nothing."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def decode(
        self,
        request: DecodeRequest,
        content: bytes,
        may_go_on: Callable[[Cost], bool],
        is_wanted: Callable[[], bool],
    ) -> Pixels:
        """Decode a picture.

        Args:
            request: the header.
            content: the caller's bytes.
            may_go_on: called once for a picture that is not quick, with its estimate; if it returns False, the picture
                is dropped.
            is_wanted: called from time to time; when it returns False, the process is killed.

        Raises:
            PictureRefused: IMAGE_UNREADABLE, IMAGE_TOO_LARGE or IMAGE_TOO_COSTLY.
            PictureDropped: see `may_go_on`; the decoder can be used again.
            DecoderEnded: it has ended, was unwanted, or took much longer than its estimate.
        """
        watch = _Watch(self.pid, self._clock, self._wall_seconds, is_wanted)
        watch.allow(request.quick.seconds)
        response = self._ask(request, content, watch)
        if response.kind == ESTIMATED:
            if not may_go_on(response.cost):
                self._send([DROP], watch.find_end)
                raise PictureDropped
            watch.allow(response.cost.seconds)
            self._send([GO_ON], watch.find_end)
            response = self._read_response(watch)
        return self._read_pixels(request, response, watch)

    def decode_joined(
        self, requests: Sequence[DecodeRequest], contents: Sequence[bytes | memoryview]
    ) -> Iterator[Pixels | PictureRefused | Cost]:
        """Decode small pictures one after the other, which takes one hand-over instead of one for each.

        The pictures' bytes must fit into the socket's buffer: while this side sends, it does not receive.

        Args:
            requests: the headers, joined.
            contents: the callers' bytes.

        Yields:
            For each picture its pixels, its refusal, or its estimated cost: it is not quick, and was not decoded.

        Raises:
            DecoderEnded: it has ended, by this picture or one of the next ones, or this one took too long.
        """
        watch = _Watch(self.pid, self._clock, self._wall_seconds, lambda: True)
        watch.allow(requests[0].quick.seconds)
        parts: list[bytes | memoryview] = []
        for request, content in zip(requests, contents, strict=True):
            parts += (request.pack(), content)
        self._send(parts, watch.find_end)
        for request in requests:
            watch.allow(request.quick.seconds)
            response = self._read_response(watch)
            if response.kind == ESTIMATED:
                yield response.cost
                continue
            try:
                pixels = self._read_pixels(request, response, watch)
            except PictureRefused as refusal:
                yield refusal
            else:
                yield pixels

    def _ask(self, request: DecodeRequest, content: bytes, watch: "_Watch") -> Response:
        """Send a picture and read the first answer.

        A decoder reads the whole picture before it looks at it. If it ends earlier, the kernel refuses what is sent, or
        reports that bytes were left unread: unix(7), EPIPE and ECONNRESET. After that the answer just ends.

        Raises:
            DecoderEnded: GONE if it had not read the picture.
        """
        try:
            self._send([request.pack(), content], watch.find_end)
            return self._read_response(watch)
        except DecoderEnded as end:
            if isinstance(end.__cause__, ConnectionError):
                raise DecoderEnded(EndCause.GONE) from end
            raise

    def _read_pixels(self, request: DecodeRequest, response: Response, watch: "_Watch") -> Pixels:
        """Read what follows the header of an answer that is no estimate.

        Raises:
            PictureRefused: the answer is a refusal.
        """
        if response.kind == REFUSED:
            message = bytearray(response.length)
            self._receive_into(memoryview(message), watch.find_end)
            raise PictureRefused(message.decode(), reason=response.reason)
        import numpy as np  # noqa: PLC0415  an engine that takes pictures has imported it

        pixels = np.empty((request.side, request.side, 3), np.uint8)
        if response.length != pixels.nbytes:
            raise self._end(EndCause.CRASHED)
        self._receive_into(pixels.data.cast("B"), watch.find_end)
        return pixels

    def _read_response(self, watch: "_Watch") -> Response:
        header = bytearray(RESPONSE.size)
        self._receive_into(memoryview(header), watch.find_end)
        try:
            return unpack_response(header)
        except ValueError as error:
            raise self._end(EndCause.CRASHED) from error

    def _send(self, parts: Sequence[bytes | memoryview], find_end: "FindEnd") -> None:
        left = [memoryview(part) for part in parts]
        while left:
            left = unsent(left, self._try(lambda: self._connection.sendmsg(left), find_end))  # noqa: B023  called at once

    def _receive_into(self, view: memoryview, find_end: "FindEnd") -> None:
        while view:
            view = view[self._try(lambda: self._connection.recv_into(view), find_end) :]  # noqa: B023  called at once

    def _try(self, transfer: Callable[[], int], find_end: "FindEnd") -> int:
        """Transfer some bytes, or none in this tick."""
        try:
            count = transfer()
        except TimeoutError:
            cause = find_end()
            if cause is not None:
                raise self._end(cause) from None
            return 0
        except OSError as error:
            raise self._end(EndCause.CRASHED) from error
        if not count:
            raise self._end(EndCause.CRASHED)
        return count

    def _end(self, cause: EndCause) -> DecoderEnded:
        self.close()
        return DecoderEnded(cause)


FindEnd = Callable[[], EndCause | None]


class _Watch:
    """The limits on one picture's time."""

    def __init__(self, pid: int, clock: Clock, wall_seconds: float, is_wanted: Callable[[], bool]) -> None:
        self._pid = pid
        self._clock = clock
        self._is_wanted = is_wanted
        self._end = clock.monotonic() + wall_seconds

    def allow(self, seconds: float) -> None:
        """Start the limit of a picture with this estimate."""
        self._limit = FIXED_LIMIT_SECONDS + OVERRUN_FACTOR * seconds
        self._cpu_start = read_cpu_seconds_of(self._pid)

    def find_end(self) -> EndCause | None:
        """Why the decoder has to be killed; None if it may go on."""
        if not self._is_wanted():
            return EndCause.UNWANTED
        if read_cpu_seconds_of(self._pid) - self._cpu_start > self._limit:
            return EndCause.TOO_SLOW
        return EndCause.STARVED if self._clock.monotonic() > self._end else None
