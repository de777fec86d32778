"""The one HTTP client: one request over one connection of its own, bounded in time, size and addresses.

Nothing is retried, redirected, unpacked, remembered or read without a limit, and the environment is not asked for
proxies, tokens or cookies: what a caller wants of these it passes in.
"""

import contextlib
import http.client
import logging
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

import urllib3.exceptions
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection

from common.clock import Clock
from updater.http.connection import AddressRefused, Connector, Deadline, ProxyUnsupported, connection_to
from updater.http.endpoint import Endpoint

_MAX_CHARS = 64
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def parse_retry_after(value: str, now: datetime, max_seconds: float) -> float:
    """Seconds that the other side asks to wait, at most `max_seconds`; 0 if it names none, or a time that has passed.

    Args:
        value: of the header: a number of seconds, or an HTTP date; anything else counts as 0.
        now: by the wall clock, with its time zone; what a date is compared with.
        max_seconds: upper bound of the result.
    """
    text = value.strip()
    if len(text) > _MAX_CHARS:
        return 0.0
    if _SECONDS.fullmatch(text):
        return min(float(text), max_seconds)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(0.0, seconds), max_seconds)


USER_AGENT = "hotslot"
_ERRORS = (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError)
_MAX_DETAIL_CHARS = 200
# It writes addresses with their signatures into the log of whoever has not forbidden it.
logging.getLogger("urllib3.connection").disabled = True


class HttpFailure(StrEnum):
    """Why there is no response, or not all of it."""

    ADDRESS_REFUSED = "ADDRESS_REFUSED"  # the host has no address that may be reached
    PROXY_UNSUPPORTED = "PROXY_UNSUPPORTED"
    UNRESOLVED = "UNRESOLVED"  # the name has no address
    OUT_OF_TIME = "OUT_OF_TIME"  # the whole took longer than `HttpLimits.total_seconds`
    TLS_FAILED = "TLS_FAILED"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    UNREACHABLE = "UNREACHABLE"
    STALLED = "STALLED"  # silent for longer than `HttpLimits.stall_seconds`
    BROKE_OFF = "BROKE_OFF"  # the connection ended before the response did
    RESPONSE_TRUNCATED = "RESPONSE_TRUNCATED"  # the body is shorter than announced
    NOT_HTTP = "NOT_HTTP"


class HttpFailed(Exception):
    """There is no response, or not all of it.

    Attributes:
        failure: why.
        detail: of the operating system or the TLS library, for people; empty if there is none.
    """

    def __init__(self, failure: HttpFailure, detail: str = "") -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail[:_MAX_DETAIL_CHARS]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is sent."""

    method: str
    endpoint: Endpoint
    headers: Mapping[str, str]  # beside User-Agent, Connection and Accept-Encoding
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """How long a request may take."""

    total_seconds: float  # all of it, from the name's look-up to the end of the body
    connect_seconds: float  # for one address of the host
    stall_seconds: float  # longest silence of the other side


def allow_any_address(_address: str) -> bool:
    """Let a request reach every address of its host: for hosts that the operator has named."""
    return True


class HttpResponse:
    """Status and headers; the body is read once, or never."""

    def __init__(self, response: BaseHTTPResponse, deadline: Deadline, address: str) -> None:
        """Read nothing yet."""
        self._response = response
        self._deadline = deadline
        self.address = address  # that the connection has reached; empty: a proxy hides it

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, by any case of their names."""
        return self._response.headers

    def pieces(self, max_piece_bytes: int) -> Iterator[bytes]:
        """The body as it comes: a piece is not held back until it is larger.

        Raises:
            HttpFailed: it broke off, fell silent, or its time is over.
        """
        while True:
            try:
                piece = self._response.read1(max_piece_bytes, decode_content=False)
            except _ERRORS as error:
                raise _answer_failed(error, self._deadline) from error
            if self._deadline.is_over:  # a body that was cut off can look as if it had ended
                raise HttpFailed(HttpFailure.OUT_OF_TIME)
            if not piece:
                return
            yield piece


@contextlib.contextmanager
def open_response(
    request: HttpRequest,
    limits: HttpLimits,
    clock: Clock,
    *,
    may_reach: Callable[[str], bool],
    trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    proxy: str = "",
) -> Iterator[HttpResponse]:
    """Send a request; the response's body can be read until the context ends. From any thread.

    Args:
        request: what is sent.
        limits: how long it may take.
        clock: measures.
        may_reach: whether an address of the host, or of the proxy, may be connected to.
        trust: gives the certificates to trust, for https; default: the system's.
        proxy: address of an http proxy; empty: none.

    Raises:
        HttpFailed: there is no response. An error's status is a response.
    """
    with contextlib.ExitStack() as stack:
        deadline = Deadline(limits.total_seconds, clock)
        stack.callback(deadline.close)
        connector = Connector(may_reach, limits.connect_seconds, deadline)
        try:
            connection, proxy_headers = _connect(request.endpoint, connector, limits, trust, proxy)
        except (*_ERRORS, AddressRefused, ProxyUnsupported) as error:
            raise _connect_failed(error, deadline) from error
        stack.callback(connection.close)
        try:
            response = _exchange(connection, request, proxy_headers, is_forwarded=bool(proxy))
        except _ERRORS as error:
            raise _answer_failed(error, deadline) from error
        stack.callback(response.close)
        if deadline.is_over:  # headers that were cut off read as if they had ended
            raise HttpFailed(HttpFailure.OUT_OF_TIME)
        yield HttpResponse(response, deadline, "" if proxy else connector.reached)


def _connect(
    endpoint: Endpoint, connector: Connector, limits: HttpLimits, trust: Callable[[], ssl.SSLContext], proxy: str
) -> tuple[HTTPConnection, dict[str, str]]:
    """An open connection, and headers that its request must have for the proxy."""
    connection, headers = connection_to(
        endpoint.scheme,
        (endpoint.host, endpoint.port),
        connector,
        context=trust() if endpoint.scheme == "https" else None,
        stall_seconds=limits.stall_seconds,
        proxy=proxy,
    )
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection, headers


def _exchange(
    connection: HTTPConnection, request: HttpRequest, proxy_headers: Mapping[str, str], *, is_forwarded: bool
) -> BaseHTTPResponse:
    endpoint = request.endpoint
    ours = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close"}
    connection.request(
        request.method,
        endpoint.url if is_forwarded and endpoint.scheme == "http" else endpoint.target,
        body=request.body,
        headers={**ours, **request.headers, **proxy_headers},
        preload_content=False,
        decode_content=False,
    )
    return connection.getresponse()


def _connect_failed(error: Exception, deadline: Deadline) -> HttpFailed:  # noqa: PLR0911  one line a cause
    """Why there is no connection."""
    match error:
        case AddressRefused():
            return HttpFailed(HttpFailure.ADDRESS_REFUSED)
        case ProxyUnsupported():
            return HttpFailed(HttpFailure.PROXY_UNSUPPORTED)
        case socket.gaierror() | UnicodeError():
            return HttpFailed(HttpFailure.UNRESOLVED)
        case _ if deadline.is_over:
            return HttpFailed(HttpFailure.OUT_OF_TIME)
        case ssl.SSLError() | urllib3.exceptions.SSLError():
            why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "the handshake failed"
            return HttpFailed(HttpFailure.TLS_FAILED, str(why))
        case TimeoutError():
            return HttpFailed(HttpFailure.CONNECT_TIMEOUT)
        case _:
            why = getattr(error, "strerror", None) or "the connection failed"
            return HttpFailed(HttpFailure.UNREACHABLE, str(why).lower())


def _answer_failed(error: Exception, deadline: Deadline) -> HttpFailed:
    """Why a response, or the rest of it, does not come."""
    if deadline.is_over:
        return HttpFailed(HttpFailure.OUT_OF_TIME)
    match error:
        case TimeoutError() | urllib3.exceptions.ReadTimeoutError():
            return HttpFailed(HttpFailure.STALLED)
        case OSError() | urllib3.exceptions.ProtocolError() | urllib3.exceptions.SSLError():
            return HttpFailed(HttpFailure.BROKE_OFF)
        case http.client.IncompleteRead():
            return HttpFailed(HttpFailure.RESPONSE_TRUNCATED)
        case _:
            return HttpFailed(HttpFailure.NOT_HTTP)
