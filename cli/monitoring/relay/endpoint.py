"""Receives notifications: POST /alerts/NAME; and GET /metrics, GET /health. Connections, threads and time are bounded.

Alertmanager gets 200 when a notification is on disk. It repeats after 5xx, so nothing is lost while the queue is full.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from cli.monitoring.relay.notification import MAX_BODY_BYTES, Notification, NotificationInvalid, parse_notification
from cli.monitoring.relay.queue import QueueFull
from common.address import ListenAddress
from common.clock import Clock
from common.http_endpoint import HttpEndpoint, InMemoryHandler
from common.logs import Logger
from common.request_listener import ListenLimits

MAX_CONNECTIONS = 32  # beyond that the oldest ones that wait are closed; each may hold a notification of MAX_BODY_BYTES
REQUEST_SECONDS = 10.0  # to receive a request; as long again to send the answer
_MAX_HEAD_BYTES = 16 * 1024
_THREADS = 4
_MAX_LENGTH_DIGITS = 12
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
        limits = ListenLimits(MAX_CONNECTIONS, MAX_CONNECTIONS, _MAX_HEAD_BYTES, REQUEST_SECONDS, REQUEST_SECONDS)
        handler = type("Handler", (_Handler,), {"relay": handlers})
        self._endpoint = HttpEndpoint(
            "alerts", handler, _THREADS, limits, clock=handlers.clock, measure_body=_BodyRule(handlers).measure
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._endpoint.port

    def start(self) -> None:
        """Listen.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._endpoint.start(self._address)

    def stop(self) -> None:
        """Stop listening."""
        self._endpoint.stop()


class _BodyRule:
    """Says how much of a body is worth receiving: nothing of a request that is refused by its head."""

    def __init__(self, handlers: RelayHandlers) -> None:
        self._handlers = handlers

    def measure(self, head: bytes) -> int:
        """The bytes to wait for behind a head."""
        first, _, rest = head.partition(b"\r\n")
        if not first.startswith(b"POST "):
            return 0
        headers = HeaderParser().parsestr(rest.decode("iso-8859-1"))
        return (_body_bytes(headers) or 0) if _is_allowed(self._handlers, headers) else 0


def _is_allowed(relay: RelayHandlers, headers: Message) -> bool:
    expected = relay.read_token()
    given = str(headers.get("Authorization", ""))
    return not expected or hmac.compare_digest(given.encode(), f"Bearer {expected}".encode())


def _body_bytes(headers: Message) -> int | None:
    """The length of a body; None if it has none that is accepted."""
    length = str(headers.get("Content-Length", ""))
    is_number = length.isascii() and length.isdigit() and len(length) < _MAX_LENGTH_DIGITS
    return int(length) if is_number and int(length) <= MAX_BODY_BYTES else None


class _Handler(InMemoryHandler, BaseHTTPRequestHandler):
    """Answers one request."""

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
        if not _is_allowed(self.relay, self.headers):
            return HTTPStatus.UNAUTHORIZED, "the token is missing or wrong"
        put = self.relay.accept.get(self.path.removeprefix(_PREFIX)) if self.path.startswith(_PREFIX) else None
        if put is None:
            return HTTPStatus.NOT_FOUND, "there is no such target"
        length = _body_bytes(self.headers)
        if length is None:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must have 1 to {MAX_BODY_BYTES} bytes"
        return self._put(put, self.rfile.read(length))

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

    def _reply(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
        """Nothing on standard error."""
