"""Numbers for Prometheus: `GET /metrics` on a small listener with threads of its own, apart from the serving loop."""

import socket
import threading
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.acceptor import Acceptor
from common.clock import Clock, SystemClock

MAX_REQUEST_BYTES = 8 * 1024
MAX_CONNECTIONS = 4  # more are closed at once: a scraper comes every few seconds, one at a time
REQUEST_SECONDS = 5.0
_STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: str
    content: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    extra_header: str = ""


class Scrape:
    """Answers scrapes of one registry between `start` and `stop`; from any thread."""

    def __init__(
        self, registry: CollectorRegistry, host: str = "127.0.0.1", port: int = 0, clock: Clock | None = None
    ) -> None:
        """Prepare; nothing listens yet.

        Args:
            registry: what is told.
            host: address to listen on.
            port: 0 takes a free one.
            clock: limits how long a request may take to arrive.
        """
        self._registry = registry
        self._address = (host, port)
        self._clock = clock or SystemClock()
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._acceptor = Acceptor("scrape", self._take)

    @property
    def port(self) -> int:
        """The port that it listens on.

        Raises:
            RuntimeError: it does not listen.
        """
        return self._acceptor.address[1]

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken or not of this host.
        """
        self._acceptor.start(*self._address, MAX_CONNECTIONS)

    def stop(self) -> None:
        """Listen no more; harmless when repeated, or when it was never started."""
        self._acceptor.stop(_STOP_SECONDS)

    def _take(self, connection: socket.socket, _peer: str) -> None:
        if not self._free.acquire(blocking=False):
            connection.close()
            return
        threading.Thread(target=self._serve, args=(connection,), name="scrape-answer", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(REQUEST_SECONDS)
                answer = self._answer(self._read_request(connection))
                connection.sendall(_to_bytes(answer))
        except OSError:
            pass  # the scraper is gone or too slow; its own business
        finally:
            self._free.release()

    def _read_request(self, connection: socket.socket) -> bytes:
        """All up to the empty line; cut where it grows too large or ends early."""
        deadline = self._clock.monotonic() + REQUEST_SECONDS
        request = b""
        while b"\r\n\r\n" not in request and len(request) <= MAX_REQUEST_BYTES:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            part = connection.recv(MAX_REQUEST_BYTES + 1 - len(request))
            if not part:
                break
            request += part
        connection.settimeout(REQUEST_SECONDS)
        return request

    def _answer(self, request: bytes) -> _Answer:
        if b"\r\n\r\n" not in request:
            is_large = len(request) > MAX_REQUEST_BYTES
            return _Answer("431 Request Header Fields Too Large" if is_large else "400 Bad Request")
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):  # noqa: PLR2004  method, target, version
            return _Answer("400 Bad Request")
        if words[0] != b"GET":
            return _Answer("405 Method Not Allowed", extra_header="Allow: GET\r\n")
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return _Answer("404 Not Found", b"numbers are at /metrics\n")
        return _Answer("200 OK", generate_latest(self._registry), CONTENT_TYPE_LATEST)


def _to_bytes(answer: _Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.content)}\r\n{answer.extra_header}Connection: close\r\n\r\n"
    )
    return head.encode() + answer.content
