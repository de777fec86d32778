"""Receives notifications: POST /alerts/NAME; and GET /metrics, GET /health. One thread a connection, bounded.

Alertmanager gets 200 when a notification is on disk. It repeats after 5xx, so nothing is lost while the queue is full.
"""

import hmac
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from cli.monitoring.relay.notification import MAX_BODY_BYTES, Notification, NotificationInvalid, parse_notification
from cli.monitoring.relay.queue import QueueFull
from common.address import ListenAddress
from common.clock import Clock
from common.listener import ThreadedListener
from common.logs import Logger

MAX_CONNECTIONS = 16
REQUEST_SECONDS = 10.0  # of one read
_STOP_SECONDS = 1.0
_PREFIX = "/alerts/"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class RelayHandlers:
    """The functions that the endpoint calls from its threads."""

    accept: Mapping[str, Callable[[Notification], None]]  # by target; raises QueueFull or OSError
    render_metrics: Callable[[], bytes]
    read_token: Callable[[], str]  # that Alertmanager must send; empty: none
    clock: Clock
    log: Logger


class RelayEndpoint:
    """Listens between `start` and `stop`."""

    def __init__(self, handlers: RelayHandlers, address: ListenAddress) -> None:
        self._address = address
        self._listener = ThreadedListener("alerts", self._serve, MAX_CONNECTIONS)
        self._handler: Callable[..., object] = type("Handler", (_Handler,), {"relay": handlers})

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._listener.port

    def start(self) -> None:
        """Listen.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._listener.start(self._address, MAX_CONNECTIONS)

    def stop(self) -> None:
        """Stop listening."""
        self._listener.stop(_STOP_SECONDS)

    def _serve(self, connection: socket.socket, peer: str) -> None:
        connection.settimeout(REQUEST_SECONDS)
        self._handler(connection, (peer, 0), None)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request and closes the connection."""

    relay: RelayHandlers
    server_version, sys_version = "hotslot", ""

    def do_GET(self) -> None:
        """Metrics and health."""
        if self.path == "/metrics":
            self._reply(HTTPStatus.OK, self.relay.render_metrics(), _TEXT)
        elif self.path == "/health":
            self._reply(HTTPStatus.OK, b"SERVING\n")
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"there are /alerts/NAME, /metrics and /health\n")

    def do_POST(self) -> None:
        """A notification."""
        status, sentence = self._accept()
        if status is not HTTPStatus.OK:
            self.relay.log.warning("alerts_refused", path=self.path[:100], status=int(status), detail=sentence)
        self._reply(status, sentence.encode() + b"\n")

    def _accept(self) -> tuple[HTTPStatus, str]:
        if not self._is_allowed():
            return HTTPStatus.UNAUTHORIZED, "the token is missing or wrong"
        put = self.relay.accept.get(self.path.removeprefix(_PREFIX)) if self.path.startswith(_PREFIX) else None
        if put is None:
            return HTTPStatus.NOT_FOUND, "there is no such target"
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must have 1 to {MAX_BODY_BYTES} bytes"
        return self._put(put, self.rfile.read(int(length)))

    def _put(self, put: Callable[[Notification], None], body: bytes) -> tuple[HTTPStatus, str]:
        try:
            put(parse_notification(body, self.relay.clock.now()))
        except NotificationInvalid as error:
            return HTTPStatus.BAD_REQUEST, f"no notification of Alertmanager: {error}"
        except QueueFull:
            return HTTPStatus.SERVICE_UNAVAILABLE, "too many notifications wait for this target"
        except OSError:
            return HTTPStatus.SERVICE_UNAVAILABLE, "the queue cannot be written"
        return HTTPStatus.OK, "accepted"

    def _is_allowed(self) -> bool:
        expected = self.relay.read_token()
        given = self.headers.get("Authorization", "")
        return not expected or hmac.compare_digest(given.encode(), f"Bearer {expected}".encode())

    def _reply(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        """Nothing on standard error."""
