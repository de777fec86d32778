"""A small HTTP server for pages that are made in memory: one request a connection, answered by a few threads."""

import io
import socketserver
import ssl
import threading
from collections import deque
from collections.abc import Callable

from common import logs
from common.address import ListenAddress
from common.clock import Clock
from common.failure_log import FailureLog
from common.request_listener import HeldConnection, ListenLimits, RequestListener, choose_surplus

_STOP_SECONDS = 1.0
_FAILED = b"HTTP/1.0 500 Internal Server Error\r\n\r\n"


class InMemoryHandler(socketserver.StreamRequestHandler):
    """Reads a whole request from memory and writes the answer there; comes before a class of `http.server`."""

    def setup(self) -> None:
        """See `socketserver`."""
        self.answer = io.BytesIO()
        self.rfile, self.wfile = io.BytesIO(self.request), self.answer

    def finish(self) -> None:
        """See `socketserver`."""


class HttpEndpoint:
    """Answers requests between `start` and `stop`; from any thread."""

    def __init__(
        self,
        name: str,
        handler: Callable[..., InMemoryHandler],
        threads: int,
        limits: ListenLimits,
        *,
        clock: Clock | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        measure_body: Callable[[bytes], int] = lambda _: 0,
    ) -> None:
        """Does not listen yet.

        Args:
            name: of the threads.
            handler: makes the answer, from the request, the client's address and None.
            threads: that make answers.
            limits: see `RequestListener`.
            clock: see `RequestListener`.
            tls: see `RequestListener`.
            measure_body: see `RequestListener`.
        """
        self._handler = handler
        self._asked: deque[HeldConnection] = deque()  # whose requests wait for a thread
        self._changed = threading.Condition()  # guards it
        self._most = limits.max_connections
        self._failures = [FailureLog(name, logs.get_logger(), clock) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._answer_all, args=(failures,), name=name, daemon=True)
            for failures in self._failures
        ]
        self._listener = RequestListener(name, self._take, limits, clock=clock, tls=tls, measure_body=measure_body)

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            RuntimeError: it does not listen.
        """
        return self._listener.port

    def start(self, address: ListenAddress) -> None:
        """Listen.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._listener.start(address)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop listening; does nothing if it was never started or is stopped already."""
        if self._listener.stop(_STOP_SECONDS):
            with self._changed:
                self._changed.notify_all()
                while self._asked:
                    self._listener.close(self._asked.popleft())

    def _take(self, connection: HeldConnection) -> None:
        with self._changed:
            self._asked.append(connection)
            if len(self._asked) > self._most:
                surplus = choose_surplus(self._asked)
                self._asked.remove(surplus)
                self._listener.close(surplus)
            self._changed.notify()

    def _next(self) -> HeldConnection | None:
        """The next request; None when the endpoint is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._listener.is_stopping)
            return self._asked.popleft() if self._asked else None

    def _answer_all(self, failures: FailureLog) -> None:
        while (connection := self._next()) is not None:
            answer = _FAILED
            with failures:
                answer = self._handler(bytes(connection.received), (connection.peer, 0), None).answer.getvalue()
            self._listener.send(connection, answer)
