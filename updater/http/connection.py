"""One HTTP connection for one request: addresses are checked before connecting, and a deadline cuts it off."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import make_headers, parse_url

from common.clock import Clock

MAX_ADDRESSES = 4  # of one host; each may take a whole connect timeout


class AddressRefused(Exception):
    """None of the addresses of a host is allowed."""


class ProxyUnsupported(Exception):
    """The proxy is not an http:// proxy."""


class Deadline:
    """Shuts a connection down when its time is over.

    A socket timeout restarts with every byte, so a peer that sends byte by byte never exceeds it. This deadline covers
    the whole: handshake, headers and body.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        """Start the timer."""
        self._clock = clock
        self._ends = clock.monotonic() + seconds
        self._lock = threading.Lock()
        self._duplicate: socket.socket | None = None
        self._is_over = False
        self._timer = threading.Timer(max(0.0, seconds), self._cut)
        self._timer.daemon = True
        self._timer.start()

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._is_over

    @property
    def left_seconds(self) -> float:
        """Time left; 0 when it is over."""
        return 0.0 if self._is_over else max(0.0, self._ends - self._clock.monotonic())

    def watch(self, opened: socket.socket) -> None:
        """Shut this socket down at the deadline, also after it was wrapped in TLS.

        Raises:
            TimeoutError: the time is over.
        """
        with self._lock:
            if self._is_over:
                raise TimeoutError("the deadline has passed")
            self._duplicate = opened.dup()

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()
        with self._lock:
            if self._duplicate is not None:
                self._duplicate.close()
                self._duplicate = None

    def _cut(self) -> None:
        with self._lock:
            self._is_over = True
            if self._duplicate is not None:
                with contextlib.suppress(OSError):
                    self._duplicate.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class Connector:
    """Opens the socket of one connection, to an allowed address."""

    may_reach: Callable[[str], bool]  # called for every address of the host
    connect_seconds: float  # for each address
    deadline: Deadline
    reached: str = ""  # the address that was connected to

    def open(self, host: str, port: int) -> socket.socket:
        """Resolve a host once, and connect to the first allowed address that answers.

        Raises:
            AddressRefused: no address is allowed.
            socket.gaierror: the host cannot be resolved.
            TimeoutError, OSError: no address answers.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        allowed = [row for row in found if self.may_reach(str(row[4][0]))]
        if not allowed:
            raise AddressRefused(host)
        last: OSError = OSError("no address")
        for family, kind, protocol, _, address in allowed[:MAX_ADDRESSES]:
            if not (left := self.deadline.left_seconds):
                raise TimeoutError("the deadline has passed") from last
            opened = socket.socket(family, kind, protocol)
            try:
                opened.settimeout(min(self.connect_seconds, left))
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.connect(address)
                self.deadline.watch(opened)
            except OSError as error:
                opened.close()
                last = error
            else:
                self.reached = str(address[0])
                return opened
        raise last


class _HttpConnection(HTTPConnection):
    connector: Connector

    def _new_conn(self) -> socket.socket:
        return self.connector.open(self._dns_host, self.port)


class _HttpsConnection(HTTPSConnection):
    connector: Connector

    def _new_conn(self) -> socket.socket:
        return self.connector.open(self._dns_host, self.port)


def create_connection(
    scheme: str,
    address: tuple[str, int],
    connector: Connector,
    *,
    context: ssl.SSLContext | None,
    stall_seconds: float,
    proxy: str,
) -> tuple[HTTPConnection, dict[str, str]]:
    """Create a connection that is not open yet.

    Args:
        scheme: http or https.
        address: host and port of the request.
        connector: opens the socket.
        context: required for https.
        stall_seconds: longest time without data.
        proxy: URL of an http proxy; empty without one.

    Returns:
        The connection, and headers that the request needs for the proxy.

    Raises:
        ProxyUnsupported: the proxy is not an http:// proxy.
    """
    host, port = address
    headers: dict[str, str] = {}
    if proxy:
        parsed = parse_url(proxy)
        if parsed.scheme != "http" or not parsed.host:
            raise ProxyUnsupported
        headers = dict(make_headers(proxy_basic_auth=parsed.auth)) if parsed.auth else {}
        host, port = parsed.host, parsed.port or 80
    made: _HttpConnection | _HttpsConnection
    if scheme == "https":
        made = _HttpsConnection(host, port, timeout=stall_seconds, ssl_context=context)
    else:
        made = _HttpConnection(host, port, timeout=stall_seconds)
    made.connector = connector
    if proxy and scheme == "https":
        made.set_tunnel(address[0], address[1], headers=headers, scheme="http")
        return made, {}
    return made, headers
