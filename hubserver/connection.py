"""The bytes of one connection, in and out, within their limits.

1. A head must be there REQUEST_SECONDS after its first byte, and that byte IDLE_SECONDS after the last answer.
2. A client that takes nothing for STALL_SECONDS, or less than MIN_BYTES_PER_SECOND in all, is let go.
"""

import socket
from collections.abc import Sequence

from common.clock import Clock
from hubserver.messages import HEAD_END, MAX_HEAD_BYTES, Answer, Part, Span, head_bytes

REQUEST_SECONDS = 10.0
IDLE_SECONDS = 15.0
STALL_SECONDS = 30.0
ANSWER_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 16 * 1024
_PIECE_BYTES = 4 << 20
_RECEIVE_BYTES = 16 * 1024


class HeadTooLarge(Exception):
    """A request's head goes on beyond what is read of one."""


class Connection:
    """One client's connection; used by one thread."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        """Take over a connected socket; closing it stays the caller's.

        Args:
            connection: connected, its TLS handshake done.
            clock: measures the limits.
        """
        self.socket = connection
        self.clock = clock
        self.sent_bytes = 0  # of the present answer's body
        self._received = b""

    def receive_head(self) -> bytes | None:
        """The next request's head without its final empty line; None: nothing more is asked in time.

        Raises:
            HeadTooLarge: it is larger than any that is read.
            OSError: the client is gone.
        """
        self.sent_bytes = 0
        is_begun, ends = False, self.clock.monotonic() + IDLE_SECONDS
        while HEAD_END not in self._received:
            if len(self._received) > MAX_HEAD_BYTES:
                raise HeadTooLarge
            if self._received and not is_begun:
                is_begun, ends = True, self.clock.monotonic() + REQUEST_SECONDS
            if not self._receive_more(ends):
                return None
        head, _, self._received = self._received.partition(HEAD_END)
        return head

    def receive_body(self, count: int) -> bytes:
        """A request's small body of so many bytes.

        Raises:
            OSError: it is not there in time, or the client is gone.
        """
        ends = self.clock.monotonic() + REQUEST_SECONDS
        while len(self._received) < count:
            if not self._receive_more(ends):
                raise ConnectionAbortedError("the body is not there in time")
        body, self._received = self._received[:count], self._received[count:]
        return body

    def await_end(self, until: float) -> bool:
        """Wait until the client goes, or a moment of the clock; whether it went."""
        while self.clock.monotonic() < until:
            if len(self._received) > MAX_HEAD_BYTES:
                return True
            try:
                if not self._receive_more(until):
                    return self.clock.monotonic() < until
            except OSError:
                return True
        return False

    def send(self, answer: Answer, *, keeps_alive: bool, with_body: bool) -> None:
        """Send an answer whole.

        Raises:
            OSError: the client is gone, or too slow; `sent_bytes` says how far it came.
        """
        ends = self.clock.monotonic() + ANSWER_SECONDS + answer.size / MIN_BYTES_PER_SECOND
        headers = {**answer.headers, "Content-Length": str(answer.size)}
        head = head_bytes(answer.status, headers, keeps_alive=keeps_alive)
        first, *rest = answer.parts if with_body and answer.parts else (b"",)
        if isinstance(first, bytes):  # a small answer is one packet
            self.send_bytes(head + first, ends)
            self.sent_bytes = len(first)
            self.send_parts(rest, ends)
        else:
            self.send_bytes(head, ends)
            self.send_parts((first, *rest), ends)

    def send_parts(self, parts: Sequence[Part], ends: float) -> None:
        """Send parts of a body until a moment of the clock, and count their bytes.

        Raises:
            OSError: the client is gone, or too slow.
        """
        for part in parts:
            if isinstance(part, Span):
                self._send_span(part, ends)
            else:
                self.send_bytes(part, ends)
                self.sent_bytes += len(part)

    def send_bytes(self, content: bytes, ends: float) -> None:
        """Send some bytes until a moment of the clock.

        Raises:
            OSError: the client is gone, or too slow.
        """
        self._limit(ends)
        self.socket.sendall(content)

    def _send_span(self, span: Span, ends: float) -> None:
        """From the page cache to the socket, without a copy where the system can do that."""
        sent = 0
        while sent < span.count:
            self._limit(ends)
            went = self.socket.sendfile(span.file, span.first + sent, min(_PIECE_BYTES, span.count - sent))
            if not went:
                raise ConnectionAbortedError("the file became shorter while it was sent")
            sent += went
            self.sent_bytes += went

    def _receive_more(self, ends: float) -> bool:
        left = ends - self.clock.monotonic()
        if left <= 0:
            return False
        self.socket.settimeout(left)
        try:
            part = self.socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return False
        self._received += part
        return bool(part)

    def _limit(self, ends: float) -> None:
        left = ends - self.clock.monotonic()
        if left <= 0:
            raise TimeoutError("the client takes too long")
        self.socket.settimeout(min(left, STALL_SECONDS))
