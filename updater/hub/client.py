"""The HTTP client of one hub: GET with redirects and token, and the classification of errors.

Error messages never quote a hub's response: it may contain our token, or text chosen by an attacker.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from modelscope_hub import errors

from common.clock import Clock
from common.reload import Stamp, read_stamps
from updater.core.effects import EffectFailure, FailureKind
from updater.core.ports import MAX_PIECE_BYTES, EffectFailed, LinkBroken
from updater.http.client import (
    HttpFailed,
    HttpFailure,
    HttpLimits,
    HttpRequest,
    HttpResponse,
    open_response,
    parse_retry_after,
)
from updater.http.endpoint import is_private_by_name, parse_endpoint
from updater.hub.redirects import RedirectChain, follow_redirect, start_chain

MAX_RETRY_AFTER_SECONDS = 86400.0
_CLIENT_ERROR = 400
_TRANSIENT, _DENIED = FailureKind.TRANSIENT, FailureKind.DENIED
_CLASSIFICATION = {
    HttpFailure.ADDRESS_REFUSED: (
        _DENIED,
        "ADDRESS_REFUSED",
        "{host} has a private address; to allow it, add it to updater.hub_private_hosts",
    ),
    HttpFailure.PROXY_UNSUPPORTED: (
        _DENIED,
        "PROXY_UNSUPPORTED",
        "the proxy in the environment does not start with http://; no other kind is supported",
    ),
    HttpFailure.UNRESOLVED: (_TRANSIENT, "HUB_UNRESOLVED", "the name {host} cannot be resolved"),
    HttpFailure.OUT_OF_TIME: (_TRANSIENT, "HUB_SLOW", "{host} did not answer within the deadline"),
    HttpFailure.TLS_FAILED: (_TRANSIENT, "TLS_FAILED", "TLS with {host} failed: {detail}"),
    HttpFailure.CONNECT_TIMEOUT: (_TRANSIENT, "HUB_UNREACHABLE", "{host} did not accept the connection in time"),
    HttpFailure.UNREACHABLE: (_TRANSIENT, "HUB_UNREACHABLE", "{host} cannot be reached: {detail}"),
    HttpFailure.STALLED: (_TRANSIENT, "HUB_STALLED", "{host} stopped sending"),
    HttpFailure.BROKE_OFF: (_TRANSIENT, "HUB_BROKE_OFF", "{host} closed the connection early"),
    HttpFailure.RESPONSE_TRUNCATED: (
        _TRANSIENT,
        "HUB_BROKE_OFF",
        "{host} sent an incomplete response",
    ),
    HttpFailure.NOT_HTTP: (_TRANSIENT, "HUB_NOT_UNDERSTOOD", "{host} sent an invalid HTTP response"),
}
_CONNECTION_BROKEN = frozenset({HttpFailure.STALLED, HttpFailure.BROKE_OFF, HttpFailure.RESPONSE_TRUNCATED})
_OK, _PARTIAL = 200, 206
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class HubHttpOptions:
    """Address, trust and timeouts of a hub."""

    endpoint: str  # for example "https://hub.example:8443/models", without a trailing slash
    private_hosts: frozenset[str] = frozenset()  # private hosts that redirects may lead to
    ca_file: Path | None = None  # certificates to trust instead of the system's
    certificate_file: Path | None = None  # to show to the hub, with its key
    key_file: Path | None = None
    connect_seconds: float = 10.0
    stall_seconds: float = 20.0  # longest time without data; below the 25 s that an operator's command waits


class HubResponse:
    """A response of the hub, or of the storage that it redirects to. The body can be read once."""

    def __init__(self, response: HttpResponse, host: str, *, is_home: bool) -> None:
        """Read nothing yet."""
        self._response = response
        self.host = host
        self.is_home = is_home  # sent by the endpoint itself, not after a redirect to another origin

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def is_good(self) -> bool:
        """Whether the status is 200 or 206."""
        return self.status in (_OK, _PARTIAL)

    @property
    def is_partial(self) -> bool:
        """Whether it is the part that Range requested."""
        return self.status == _PARTIAL

    @property
    def is_redirect(self) -> bool:
        """Whether the status is a redirect."""
        return self.status in _REDIRECTS

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, case-insensitive."""
        return self._response.headers

    def header(self, name: str) -> str:
        """One header; empty if it is missing."""
        return self.headers.get(name, "")

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces, as they arrive.

        Raises:
            EffectFailed: the connection broke, stalled, or the deadline has passed.
        """
        if self.header("content-encoding").lower() not in ("", "identity"):
            raise build_protocol_error(f"{self.host} sent a compressed body that was not requested")
        try:
            yield from self._response.pieces(MAX_PIECE_BYTES)
        except HttpFailed as error:
            raise classify_failure(error, self.host) from error

    def read(self, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            EffectFailed: it is longer than `max_bytes`, or incomplete.
        """
        content = bytearray()
        for piece in self.pieces():
            content += piece
            if len(content) > max_bytes:
                raise build_protocol_error(f"{self.host} sent more than {max_bytes} bytes")
        return bytes(content)


class HubHttpClient:
    """Sends GET requests to one hub. From one thread at a time."""

    def __init__(
        self, options: HubHttpOptions, clock: Clock, token: Callable[[], str], proxy_for: Callable[[str, str], str]
    ) -> None:
        """Send nothing yet.

        Args:
            options: of the hub.
            clock: for deadlines.
            token: called before every request; returns "" without a token.
                Raises EffectFailed if one is configured and cannot be read.
            proxy_for: returns the URL of the proxy for a scheme and host; "" without one.
        """
        self._options = options
        self._clock = clock
        self._token = token
        self._proxy_for = proxy_for
        self._context: ssl.SSLContext | None = None
        self._stamps: tuple[Stamp, ...] = ()  # of the files from which the context was made

    @property
    def host(self) -> str:
        """Host of the endpoint, for people; with the port if it is not the default."""
        return parse_endpoint(self._options.endpoint).authority

    @contextlib.contextmanager
    def get(
        self, target: str, deadline_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Iterator[HubResponse]:
        """Send a request and follow redirects.

        Args:
            target: path and query below the endpoint.
            deadline_seconds: for everything, including the body.
            headers: in addition to the client's own.

        Raises:
            EffectFailed: no response came. An error status is a response.
        """
        ends = self._clock.monotonic() + deadline_seconds
        chain = start_chain(self._options.endpoint, target)
        while True:
            with contextlib.ExitStack() as stack:
                response, chain = self._send(chain, ends, headers or {}, stack)
                if not response.is_redirect:
                    yield response
                    return
                location = response.header("location")
            if not location:
                raise build_protocol_error(f"{response.host} sent a redirect without a location")
            chain = follow_redirect(chain, location)

    def _send(
        self, chain: RedirectChain, ends: float, headers: Mapping[str, str], stack: contextlib.ExitStack
    ) -> tuple[HubResponse, RedirectChain]:
        """Send one request; returns the response and the updated chain. Closing `stack` closes the connection."""
        options, host = self._options, chain.current.host
        left = ends - self._clock.monotonic()
        if left <= 0:
            raise EffectFailed.transient("HUB_SLOW", f"the deadline passed before {host} was asked")
        token = self._token() if chain.may_carry_token else ""
        proxy = self._proxy_for(chain.current.scheme, host)
        if proxy and is_private_by_name(host) and not chain.may_reach(host, options.private_hosts):
            raise EffectFailed.denied("ADDRESS_REFUSED", f"{host} is a private address")

        def may_reach(address: str) -> bool:
            return bool(proxy) or chain.may_reach(address, options.private_hosts)

        request = HttpRequest("GET", chain.current, {"Accept": "*/*", **_authorization(token), **headers})
        limits = HttpLimits(left, options.connect_seconds, options.stall_seconds)
        opening = open_response(request, limits, self._clock, may_reach=may_reach, trust=self._get_context, proxy=proxy)
        try:
            response = stack.enter_context(opening)
        except HttpFailed as error:
            raise classify_failure(error, host) from error
        return HubResponse(response, host, is_home=not chain.has_left), chain.with_address(response.address)

    def _get_context(self) -> ssl.SSLContext:
        """The TLS context, with the certificates of the system or of `ca_file`; made again when a file changes.

        Raises:
            EffectFailed: a file cannot be used; of the kind DENIED.
        """
        options = self._options
        named = {
            "hub_ca_file": options.ca_file,
            "hub_certificate_file": options.certificate_file,
            "hub_key_file": options.key_file,
        }
        stamps = read_stamps(path for path in named.values() if path is not None)
        if self._context is None or stamps != self._stamps:
            try:
                context = ssl.create_default_context(cafile=options.ca_file)
                if options.certificate_file is not None:
                    context.load_cert_chain(options.certificate_file, options.key_file)
            except OSError as error:  # SSLError too
                keys = ", ".join(key for key, path in named.items() if path is not None)
                reason = getattr(error, "reason", None) or (error.strerror or str(error)).lower()
                message = f"a file of updater.{keys} cannot be used: {reason}"
                raise EffectFailed.denied("TLS_FILES_UNUSABLE", message) from error
            self._context, self._stamps = context, stamps
        return self._context


def _authorization(token: str) -> dict[str, str]:
    """Headers for a token; older parts of the hub accept only the cookie."""
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


@dataclass(frozen=True, slots=True)
class HubErrorResponse:
    """An error response, with the attributes that the hub's own client library reads."""

    status_code: int
    headers: Mapping[str, str]
    row: object  # the parsed body; None if it is not JSON
    text: str = ""
    url: str = ""
    request: None = None

    def json(self) -> object:
        """The parsed body.

        Raises:
            ValueError: it is not JSON.
        """
        if self.row is None:
            raise ValueError("not JSON")
        return self.row


def build_protocol_error(message: str) -> EffectFailed:
    """The response is not one of a known hub: a login page, a proxy, a newer protocol."""
    return EffectFailed.transient("HUB_NOT_UNDERSTOOD", message)


def classify_failure(error: HttpFailed, host: str) -> EffectFailed:
    """The outcome of a request without a complete response."""
    kind, reason, sentence = _CLASSIFICATION[error.failure]
    failed = EffectFailure(kind, reason, sentence.format(host=host, detail=error.detail))
    return LinkBroken(failed) if error.failure in _CONNECTION_BROKEN else EffectFailed(failed)


def classify_response(response: HubErrorResponse, now: datetime, *, is_home: bool) -> EffectFailed:  # noqa: PLR0911  one line a class
    """The outcome of an error response, by the exception classes of the hub's own client, which knows its error codes.

    Args:
        response: the error; status 200 with "Success": false counts as 400.
        now: for a Retry-After that is a date.
        is_home: sent by the endpoint itself, not by a storage that it redirected to.
    """
    status = response.status_code
    wait = parse_retry_after(response.headers.get("retry-after", ""), now, MAX_RETRY_AFTER_SECONDS)
    counted = response if status >= _CLIENT_ERROR else replace(response, status_code=_CLIENT_ERROR)
    try:
        errors.raise_for_status(_to_any(counted))
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        if is_home:
            return EffectFailed.denied(
                "HUB_DENIED", f"the hub denies access ({status}); a private model needs a token: updater.hub_token_…"
            )
        return EffectFailed.transient("STORAGE_DENIED", f"the storage of the hub denies access ({status})", wait)
    except errors.NotExistError:
        return EffectFailed.not_ready("NOT_THERE", f"the hub does not have it ({status})")
    except (errors.RateLimitError, errors.QuotaExceededError):
        return EffectFailed.transient("RATE_LIMITED", f"the hub limits the request rate ({status})", wait)
    except errors.ServerError:
        return EffectFailed.transient("HUB_FAILED", f"the hub failed internally ({status})", wait)
    except errors.HubError:
        return EffectFailed.transient("HUB_REFUSED", f"the hub refused the request ({status})", wait)
    return build_protocol_error(f"the hub answered with the unexpected status {status}")


def _to_any(response: HubErrorResponse) -> Any:  # noqa: ANN401  stands in for a `requests.Response`
    return response
