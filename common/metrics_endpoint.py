"""`GET /metrics` for Prometheus, on threads apart from the serving event loop.

prometheus_client's own handler makes the answer; connections, time and size are limited.
"""

import ssl
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from common.address import LOOPBACK, ListenAddress
from common.clock import Clock
from common.http_endpoint import HttpEndpoint, InMemoryHandler
from common.request_listener import HEAD_END, ListenLimits

MAX_REQUEST_BYTES = 8 * 1024
MAX_CONNECTIONS = 64  # that wait for the rest of a request, or for their answer; beyond that the oldest ones are closed
REQUEST_SECONDS = 5.0  # to receive a request; as long again to send the answer
_MAX_ANSWERS = 16  # being sent at once: an answer may be a megabyte
_THREADS = 2


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
        limits = ListenLimits(MAX_CONNECTIONS, _MAX_ANSWERS, MAX_REQUEST_BYTES, REQUEST_SECONDS, REQUEST_SECONDS)
        handler = type("Handler", (_Handler,), {"registry": registry})
        self._endpoint = HttpEndpoint("metrics", handler, _THREADS, limits, clock=clock, tls=tls)

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            RuntimeError: it does not listen.
        """
        return self._endpoint.port

    def start(self) -> None:
        """Listen.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._endpoint.start(self._address)

    def stop(self) -> None:
        """Stop listening; does nothing if it was never started or is stopped already."""
        self._endpoint.stop()


class _Handler(InMemoryHandler, MetricsHandler):
    """Answers one request."""

    server_version, sys_version = "hotslot", ""  # the Server header does not name the Python version
    default_request_version = "HTTP/1.0"  # a malformed request gets a status line too, which HTTP/0.9 does not have

    def handle(self) -> None:
        """Check the size of the request's head before anything parses it."""
        head: bytes = self.request
        self.command = self.requestline = ""
        self.request_version = self.default_request_version
        if len(head) > MAX_REQUEST_BYTES:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif HEAD_END not in head:
            self.send_error(HTTPStatus.BAD_REQUEST)
        else:
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
