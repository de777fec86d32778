"""One connection, used once: its address is looked at before it is reached, and its time is over when it is over."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import make_headers, parse_url

from common.clock import Clock

MAX_ADDRESSES = 4  # of one host; each may cost a connect timeout


class AddressRefused(Exception):
    """A host has no address that may be reached."""


class ProxyUnsupported(Exception):
    """The environment names a proxy of a kind that is not spoken to."""


class Deadline:
    """Cuts a connection off when its time is over.

    A timeout of a socket counts from byte to byte: who sends one now and then is never late. So the
    whole has an end of its own, in handshake, headers and body alike.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        """Count from now on."""
        self._clock = clock
        self._ends = clock.monotonic() + seconds
        self._lock = threading.Lock()
        self._twin: socket.socket | None = None
        self._is_over = False
        self._timer = threading.Timer(max(0.0, seconds), self._cut)
        self._timer.daemon = True
        self._timer.start()

    @property
    def is_over(self) -> bool:
        """Whether it has cut something off."""
        return self._is_over

    @property
    def left_seconds(self) -> float:
        """What is left of its time; 0 when it is over."""
        return 0.0 if self._is_over else max(0.0, self._ends - self._clock.monotonic())

    def watch(self, opened: socket.socket) -> None:
        """Watch a socket; what becomes of it, TLS for example, shares its end.

        Raises:
            TimeoutError: the time is over already.
        """
        with self._lock:
            if self._is_over:
                raise TimeoutError("the time is over")
            self._twin = opened.dup()

    def close(self) -> None:
        """Let go."""
        self._timer.cancel()
        with self._lock:
            if self._twin is not None:
                self._twin.close()
                self._twin = None

    def _cut(self) -> None:
        with self._lock:
            self._is_over = True
            if self._twin is not None:
                with contextlib.suppress(OSError):
                    self._twin.shutdown(socket.SHUT_RDWR)


@dataclass(slots=True)
class Connector:
    """Opens the socket of one connection."""

    may_reach: Callable[[str], bool]  # asked for every address of the host
    connect_seconds: float  # for one address
    deadline: Deadline
    reached: str = ""  # the address, once there is one

    def open(self, host: str, port: int) -> socket.socket:
        """Resolve a host once, and connect to the first of its addresses that may be reached and answers.

        Raises:
            AddressRefused: none of them may be reached.
            socket.gaierror: it has none.
            TimeoutError, OSError: none answers.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        allowed = [row for row in found if self.may_reach(str(row[4][0]))]
        if not allowed:
            raise AddressRefused(host)
        last: OSError = OSError("no address")
        for family, kind, protocol, _, address in allowed[:MAX_ADDRESSES]:
            if not (left := self.deadline.left_seconds):
                raise TimeoutError("the time is over") from last
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


class _Plain(HTTPConnection):
    connector: Connector

    def _new_conn(self) -> socket.socket:
        return self.connector.open(self._dns_host, self.port)


class _Secure(HTTPSConnection):
    connector: Connector

    def _new_conn(self) -> socket.socket:
        return self.connector.open(self._dns_host, self.port)


def connection_to(
    scheme: str,
    address: tuple[str, int],
    connector: Connector,
    *,
    context: ssl.SSLContext | None,
    stall_seconds: float,
    proxy: str,
) -> tuple[HTTPConnection, dict[str, str]]:
    """Prepare a connection; nothing is sent yet.

    Args:
        scheme: http or https.
        address: host and port that are asked.
        connector: opens its socket.
        context: needed for https.
        stall_seconds: longest silence of the other side.
        proxy: address of an http proxy; empty: none.

    Returns:
        The connection, and headers that its request must have for the proxy.

    Raises:
        ProxyUnsupported: only plain http is spoken to a proxy.
    """
    host, port = address
    headers: dict[str, str] = {}
    if proxy:
        parsed = parse_url(proxy)
        if parsed.scheme != "http" or not parsed.host:
            raise ProxyUnsupported
        headers = dict(make_headers(proxy_basic_auth=parsed.auth)) if parsed.auth else {}
        host, port = parsed.host, parsed.port or 80
    made: _Plain | _Secure
    if scheme == "https":
        made = _Secure(host, port, timeout=stall_seconds, ssl_context=context)
    else:
        made = _Plain(host, port, timeout=stall_seconds)
    made.connector = connector
    if proxy and scheme == "https":
        made.set_tunnel(address[0], address[1], headers=headers, scheme="http")
        return made, {}
    return made, headers
