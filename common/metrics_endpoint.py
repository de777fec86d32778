"""`GET /metrics` for Prometheus, on threads apart from the serving event loop.

prometheus_client's own handler writes the answer; this module limits connections, time and size.
"""

import io
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from common.address import LOOPBACK, ListenAddress
from common.clock import Clock, SystemClock
from common.listener import ThreadedListener

MAX_REQUEST_BYTES = 8 * 1024
MAX_CONNECTIONS = 4  # further ones are closed at once: Prometheus opens one every few seconds
REQUEST_SECONDS = 5.0  # to receive a request; as long again to send the answer
_STOP_SECONDS = 1.0
_HEAD_END = b"\r\n\r\n"


class MetricsEndpoint:
    """Serves the metrics of one registry between `start` and `stop`; from any thread."""

    def __init__(
        self,
        registry: CollectorRegistry,
        address: ListenAddress = LOOPBACK,
        clock: Clock | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Does not listen yet.

        Args:
            registry: the metrics to serve.
            address: to listen on; port 0 takes a free one.
            clock: limits how long a request may take to arrive.
            tls: the context for a new connection; None: plain HTTP.
        """
        self._address = address
        self._tls = tls
        self._listener = ThreadedListener("metrics", self._serve, MAX_CONNECTIONS)
        attributes = {"registry": registry, "clock": clock or SystemClock()}
        self._handle: Callable[..., object] = type("Handler", (_Handler,), attributes)

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            RuntimeError: it does not listen.
        """
        return self._listener.port

    def start(self) -> None:
        """Listen.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._listener.start(self._address, MAX_CONNECTIONS)

    def stop(self) -> None:
        """Stop listening; does nothing if it was never started or is stopped already."""
        self._listener.stop(_STOP_SECONDS)

    def _serve(self, connection: socket.socket, peer: str) -> None:
        with self._secured(connection) as secured:
            self._handle(secured, (peer, 0), None)

    def _secured(self, connection: socket.socket) -> socket.socket:
        """The connection, over TLS if this endpoint speaks it.

        Raises:
            OSError: the client speaks no TLS, is too slow, or shows no certificate that it should.
        """
        if self._tls is None:
            return connection
        connection.settimeout(REQUEST_SECONDS)
        return self._tls().wrap_socket(connection, server_side=True)


class _Handler(MetricsHandler):
    """Answers one request and closes the connection."""

    clock: Clock
    server_version, sys_version = "hotslot", ""  # the Server header does not name the Python version
    default_request_version = "HTTP/1.0"  # a malformed request gets a status line too, which HTTP/0.9 does not have

    def handle(self) -> None:
        """Check the size of the request's head before anything parses it."""
        head = self._receive_head()
        self.command = self.requestline = ""
        self.request_version = self.default_request_version
        if len(head) > MAX_REQUEST_BYTES:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif _HEAD_END not in head:
            self.send_error(HTTPStatus.BAD_REQUEST)
        else:
            self.rfile = io.BytesIO(head)
            self.handle_one_request()

    def do_GET(self) -> None:  # noqa: N802  http.server's name
        """Serve /metrics alone; prometheus_client serves every path."""
        try:
            path = urlsplit(self.path).path
        except ValueError:  # a bracket without end, where an address would stand
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        if path == "/metrics":
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, explain="Metrics are at /metrics.")

    def _receive_head(self) -> bytes:
        """The request up to its empty line, or less if the client stops or sends too much.

        Raises:
            OSError: it did not arrive in time.
        """
        deadline = self.clock.monotonic() + REQUEST_SECONDS
        head = b""
        while _HEAD_END not in head and len(head) <= MAX_REQUEST_BYTES:
            self.connection.settimeout(max(0.0, deadline - self.clock.monotonic()))
            part = self.connection.recv(MAX_REQUEST_BYTES + 1 - len(head))
            if not part:
                break
            head += part
        self.connection.settimeout(REQUEST_SECONDS)
        return head
