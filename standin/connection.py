"""The bytes of one connection, in and out, within their limits.

1. A head must be there REQUEST_SECONDS after its first byte, and that byte IDLE_SECONDS after the last answer.
2. A client that takes nothing for STALL_SECONDS, or less than MIN_BYTES_PER_SECOND in all, is let go.
"""

import socket

from common.clock import Clock
from standin.messages import HEAD_END, MAX_HEAD_BYTES, Answer, Span, head_bytes

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

    def send(self, answer: Answer, *, keeps_alive: bool, with_body: bool) -> None:
        """Send an answer whole.

        Raises:
            OSError: the client is gone, or too slow; `sent_bytes` says how far it came.
        """
        ends = self.clock.monotonic() + ANSWER_SECONDS + answer.size / MIN_BYTES_PER_SECOND
        headers = {**answer.headers, "Content-Length": str(answer.size)}
        head = head_bytes(answer.status, headers, keeps_alive=keeps_alive)
        if not with_body:
            self.send_bytes(head, ends)
        elif isinstance(answer.body, Span):
            self.send_bytes(head, ends)
            self._send_span(answer.body, ends)
        else:
            self.send_bytes(head + answer.body, ends)
            self.sent_bytes = answer.size

    def send_bytes(self, content: bytes, ends: float) -> None:
        """Send some bytes until a moment of the clock.

        Raises:
            OSError: the client is gone, or too slow.
        """
        self._limit(ends)
        self.socket.sendall(content)

    def _send_span(self, span: Span, ends: float) -> None:
        """From the page cache to the socket, without a copy where the system can do that."""
        while self.sent_bytes < span.count:
            self._limit(ends)
            piece = min(_PIECE_BYTES, span.count - self.sent_bytes)
            sent = self.socket.sendfile(span.file, span.first + self.sent_bytes, piece)
            self.sent_bytes += sent
            if not sent:
                raise ConnectionAbortedError("the file became shorter while it was sent")

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
