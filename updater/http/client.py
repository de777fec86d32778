"""The HTTP client of the updater: one request over its own connection, bounded in time, size and addresses.

It does not retry, follow redirects, decompress or cache, and reads no proxies, tokens or cookies from the environment:
callers pass in what they need.
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
from updater.http.connection import AddressRefused, Connector, Deadline, ProxyUnsupported, create_connection
from updater.http.endpoint import Endpoint

_MAX_CHARS = 64
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def parse_retry_after(value: str, now: datetime, max_seconds: float) -> float:
    """Retry-After in seconds, at most `max_seconds`; 0 for a date in the past or an invalid value.

    Args:
        value: of the header: a number of seconds, or an HTTP date.
        now: by the wall clock, with a time zone; a date is relative to it.
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
# It logs URLs with their signatures.
logging.getLogger("urllib3.connection").disabled = True


class HttpFailure(StrEnum):
    """Why a response is missing or incomplete."""

    ADDRESS_REFUSED = "ADDRESS_REFUSED"  # no address of the host is allowed
    PROXY_UNSUPPORTED = "PROXY_UNSUPPORTED"
    UNRESOLVED = "UNRESOLVED"  # the host cannot be resolved
    OUT_OF_TIME = "OUT_OF_TIME"  # longer than `HttpLimits.total_seconds`
    TLS_FAILED = "TLS_FAILED"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    UNREACHABLE = "UNREACHABLE"
    STALLED = "STALLED"  # no data for longer than `HttpLimits.stall_seconds`
    BROKE_OFF = "BROKE_OFF"  # the connection was closed early
    RESPONSE_TRUNCATED = "RESPONSE_TRUNCATED"  # the body is shorter than Content-Length
    NOT_HTTP = "NOT_HTTP"


class HttpFailed(Exception):
    """The response is missing or incomplete.

    Attributes:
        failure: the cause.
        detail: from the operating system or the TLS library, for people; may be empty.
    """

    def __init__(self, failure: HttpFailure, detail: str = "") -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail[:_MAX_DETAIL_CHARS]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request."""

    method: str
    endpoint: Endpoint
    headers: Mapping[str, str]  # in addition to User-Agent, Connection and Accept-Encoding
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Timeouts of a request."""

    total_seconds: float  # from the DNS look-up to the end of the body
    connect_seconds: float  # for each address of the host
    stall_seconds: float  # longest time without data


def allow_any_address(_address: str) -> bool:
    """Allow every address: for hosts that the operator has configured."""
    return True


class HttpResponse:
    """A response. The body can be read once."""

    def __init__(self, response: BaseHTTPResponse, deadline: Deadline, address: str) -> None:
        """Read nothing yet."""
        self._response = response
        self._deadline = deadline
        self.address = address  # of the connection; empty if a proxy was used

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, case-insensitive."""
        return self._response.headers

    def pieces(self, max_piece_bytes: int) -> Iterator[bytes]:
        """The body in pieces, as they arrive.

        Raises:
            HttpFailed: the connection broke, stalled, or the deadline has passed.
        """
        while True:
            try:
                piece = self._response.read1(max_piece_bytes, decode_content=False)
            except _ERRORS as error:
                raise _classify_read_error(error, self._deadline) from error
            if self._deadline.is_over:  # a body that was cut off can look complete
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
    """Send a request, and close the connection at the end of the context. From any thread.

    Args:
        request: to send.
        limits: timeouts.
        clock: for the deadline.
        may_reach: whether an IP address of the host, or of the proxy, is allowed.
        trust: returns the TLS context, for https; default: the system's certificates.
        proxy: URL of an http proxy; empty without one.

    Raises:
        HttpFailed: no response came. An error status is a response.
    """
    with contextlib.ExitStack() as stack:
        deadline = Deadline(limits.total_seconds, clock)
        stack.callback(deadline.close)
        connector = Connector(may_reach, limits.connect_seconds, deadline)
        try:
            connection, proxy_headers = _connect(request.endpoint, connector, limits, trust, proxy)
        except (*_ERRORS, AddressRefused, ProxyUnsupported) as error:
            raise _classify_connect_error(error, deadline) from error
        stack.callback(connection.close)
        try:
            response = _exchange(connection, request, proxy_headers, is_forwarded=bool(proxy))
        except _ERRORS as error:
            raise _classify_read_error(error, deadline) from error
        stack.callback(response.close)
        if deadline.is_over:  # headers that were cut off can look complete
            raise HttpFailed(HttpFailure.OUT_OF_TIME)
        yield HttpResponse(response, deadline, "" if proxy else connector.reached)


def _connect(
    endpoint: Endpoint, connector: Connector, limits: HttpLimits, trust: Callable[[], ssl.SSLContext], proxy: str
) -> tuple[HTTPConnection, dict[str, str]]:
    """Open a connection; returns it, and headers that the request needs for the proxy."""
    connection, headers = create_connection(
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


def _classify_connect_error(error: Exception, deadline: Deadline) -> HttpFailed:  # noqa: PLR0911  one line a cause
    """The failure of a connection that was not established."""
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


def _classify_read_error(error: Exception, deadline: Deadline) -> HttpFailed:
    """The failure of a response that is missing or incomplete."""
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
