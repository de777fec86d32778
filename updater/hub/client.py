"""Asks one hub: GET, by the rules of `redirects` for addresses and the token, over the client of `updater.http`."""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from modelscope_hub import errors

from common.clock import Clock
from updater.core.ports import MAX_PIECE_BYTES, EffectFailed, LinkBroken
from updater.core.results import Failed, FaultKind
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

_OK, _PARTIAL = 200, 206
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class HubHttpRules:
    """Which hub is asked, and how long anything may take."""

    endpoint: str  # for example "https://hub.example:8443/models", without a slash at its end
    private_hosts: frozenset[str] = frozenset()  # redirects may lead to these though they are private
    ca_file: Path | None = None  # of a hub with a certificate of one's own
    connect_seconds: float = 10.0
    stall_seconds: float = 20.0  # longest silence; an operator's wish waits no longer than 25


class HubResponse:
    """The response of a hub, or of a storage that it redirects to; its body is read once."""

    def __init__(self, response: HttpResponse, host: str, *, is_home: bool) -> None:
        """Read nothing yet."""
        self._response = response
        self.host = host
        self.is_home = is_home  # from the hub's own scheme, host and port

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def is_good(self) -> bool:
        """Whether there is a body that was asked for."""
        return self.status in (_OK, _PARTIAL)

    @property
    def is_partial(self) -> bool:
        """Whether it is a part, as asked for by Range."""
        return self.status == _PARTIAL

    @property
    def is_redirect(self) -> bool:
        """Whether it names another address to ask."""
        return self.status in _REDIRECTS

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers, by any case of their names."""
        return self._response.headers

    def header(self, name: str) -> str:
        """One header; empty if it is not there."""
        return self.headers.get(name, "")

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes: a piece is not held back until it is larger.

        Raises:
            EffectFailed: it broke off, fell silent, or its time is over.
        """
        if self.header("content-encoding").lower() not in ("", "identity"):
            raise not_understood(f"{self.host} packs what it was asked not to pack")
        try:
            yield from self._response.pieces(MAX_PIECE_BYTES)
        except HttpFailed as error:
            raise effect_of(error, self.host) from error

    def read(self, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            EffectFailed: it has more than `max_bytes`, or does not come whole.
        """
        content = bytearray()
        for piece in self.pieces():
            content += piece
            if len(content) > max_bytes:
                raise not_understood(f"{self.host} answers with more than {max_bytes} bytes")
        return bytes(content)


class HubHttpClient:
    """Asks one hub. From one thread at a time."""

    def __init__(
        self, rules: HubHttpRules, clock: Clock, token: Callable[[], str], proxy_for: Callable[[str, str], str]
    ) -> None:
        """Ask nothing yet.

        Args:
            rules: which hub.
            clock: measures.
            token: read before every request; empty: none.
                Raises EffectFailed if one is configured and cannot be had.
            proxy_for: address of the proxy for a scheme and host; empty: none.
        """
        self._rules = rules
        self._clock = clock
        self._token = token
        self._proxy_for = proxy_for
        self._context: ssl.SSLContext | None = None

    @property
    def host(self) -> str:
        """Of the endpoint, for people; with its port if that is not the scheme's own."""
        return parse_endpoint(self._rules.endpoint).authority

    @contextlib.contextmanager
    def get(
        self, target: str, deadline_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Iterator[HubResponse]:
        """Ask, and follow redirects.

        Args:
            target: path and query below the endpoint.
            deadline_seconds: for all of it, the body's end included.
            headers: beside our own.

        Raises:
            EffectFailed: no response came. An error's status is a response.
        """
        ends = self._clock.monotonic() + deadline_seconds
        chain = start_chain(self._rules.endpoint, target)
        while True:
            with contextlib.ExitStack() as stack:
                response, chain = self._ask(chain, ends, headers or {}, stack)
                if not response.is_redirect:
                    yield response
                    return
                location = response.header("location")
            if not location:
                raise not_understood(f"{response.host} redirects nowhere")
            chain = follow_redirect(chain, location)

    def _ask(
        self, chain: RedirectChain, ends: float, headers: Mapping[str, str], stack: contextlib.ExitStack
    ) -> tuple[HubResponse, RedirectChain]:
        """Send one request; returns the response and the updated chain. Closing `stack` closes the connection."""
        rules, host = self._rules, chain.current.host
        left = ends - self._clock.monotonic()
        if left <= 0:
            raise transient("HUB_SLOW", f"there was no time left to ask {host}")
        token = self._token() if chain.may_carry_token else ""
        proxy = self._proxy_for(chain.current.scheme, host)
        if proxy and is_private_by_name(host) and not chain.may_reach(host, rules.private_hosts):
            raise denied("ADDRESS_REFUSED", f"{host} is a private address")

        def may_reach(address: str) -> bool:
            return bool(proxy) or chain.may_reach(address, rules.private_hosts)

        request = HttpRequest("GET", chain.current, {"Accept": "*/*", **_authorization(token), **headers})
        limits = HttpLimits(left, rules.connect_seconds, rules.stall_seconds)
        opening = open_response(request, limits, self._clock, may_reach=may_reach, trust=self._trust, proxy=proxy)
        try:
            response = stack.enter_context(opening)
        except HttpFailed as error:
            raise effect_of(error, host) from error
        return HubResponse(response, host, is_home=not chain.has_left), chain.with_address(response.address)

    def _trust(self) -> ssl.SSLContext:
        """Certificates of the system, or those of `ca_file`; read once."""
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._rules.ca_file)
        return self._context


def _authorization(token: str) -> dict[str, str]:
    """Headers for a token; older parts of the hub know the cookie alone."""
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


MAX_RETRY_AFTER_SECONDS = 86400.0
_CLIENT_ERROR = 400
_TRANSIENT, _DENIED = FaultKind.TRANSIENT, FaultKind.DENIED
_MEANINGS = {
    HttpFailure.ADDRESS_REFUSED: (
        _DENIED,
        "ADDRESS_REFUSED",
        "{host} has a private address; if that is meant, name it in updater.hub_private_hosts",
    ),
    HttpFailure.PROXY_UNSUPPORTED: (
        _DENIED,
        "PROXY_UNSUPPORTED",
        "the environment names a proxy that is not at http://…",
    ),
    HttpFailure.UNRESOLVED: (_TRANSIENT, "HUB_UNRESOLVED", "the name {host} cannot be resolved"),
    HttpFailure.OUT_OF_TIME: (_TRANSIENT, "HUB_SLOW", "{host} did not answer in the time there was"),
    HttpFailure.TLS_FAILED: (_TRANSIENT, "TLS_FAILED", "no trusted connection to {host}: {detail}"),
    HttpFailure.CONNECT_TIMEOUT: (_TRANSIENT, "HUB_UNREACHABLE", "{host} did not take the connection in time"),
    HttpFailure.UNREACHABLE: (_TRANSIENT, "HUB_UNREACHABLE", "{host} cannot be reached: {detail}"),
    HttpFailure.STALLED: (_TRANSIENT, "HUB_STALLED", "{host} fell silent"),
    HttpFailure.BROKE_OFF: (_TRANSIENT, "HUB_BROKE_OFF", "{host} broke the connection off"),
    HttpFailure.RESPONSE_TRUNCATED: (_TRANSIENT, "HUB_BROKE_OFF", "{host} broke the answer off"),
    HttpFailure.NOT_HTTP: (_TRANSIENT, "HUB_NOT_UNDERSTOOD", "{host} does not speak HTTP as we know it"),
}
_IN_THE_MIDDLE = frozenset({HttpFailure.STALLED, HttpFailure.BROKE_OFF, HttpFailure.RESPONSE_TRUNCATED})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error, in the shape in which the hub's own client reads one."""

    status_code: int
    headers: Mapping[str, str]
    row: object  # the body, if it is JSON
    text: str = ""
    url: str = ""
    request: None = None

    def json(self) -> object:
        """The body.

        Raises:
            ValueError: it is no JSON.
        """
        if self.row is None:
            raise ValueError("no JSON")
        return self.row


def transient(reason: str, message: str, retry_after_seconds: float = 0.0) -> EffectFailed:
    """The same may succeed later."""
    return EffectFailed.transient(reason, message, retry_after_seconds)


def denied(reason: str, message: str) -> EffectFailed:
    """Somebody must change a setting, here or there."""
    return EffectFailed.denied(reason, message)


def not_understood(message: str) -> EffectFailed:
    """What answers is not a hub that we know: a login page, a proxy, a newer protocol."""
    return transient("HUB_NOT_UNDERSTOOD", message)


def effect_of(error: HttpFailed, host: str) -> EffectFailed:
    """What it means that a response of a hub, or the rest of it, does not come."""
    kind, reason, sentence = _MEANINGS[error.failure]
    failed = Failed(kind, reason, sentence.format(host=host, detail=error.detail))
    return LinkBroken(failed) if error.failure in _IN_THE_MIDDLE else EffectFailed(failed)


def refusal_of(refusal: Refusal, now: datetime, *, is_home: bool) -> EffectFailed:  # noqa: PLR0911  one line a class
    """What an error of a hub means, by the classes of its own client: it knows the codes behind a status.

    Args:
        refusal: the answer; one with status 200 that says "not successful" counts as a bad request.
        now: for a Retry-After that is a date.
        is_home: the endpoint itself has answered, not a storage that it sent us to.
    """
    status = refusal.status_code
    wait = parse_retry_after(refusal.headers.get("retry-after", ""), now, MAX_RETRY_AFTER_SECONDS)
    told = refusal if status >= _CLIENT_ERROR else Refusal(_CLIENT_ERROR, refusal.headers, refusal.row)
    try:
        errors.raise_for_status(_as_response(told))
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        if is_home:
            return denied(
                "HUB_DENIED", f"the hub denies it ({status}); a private model needs a token: updater.hub_token_…"
            )
        return transient("STORAGE_DENIED", f"the hub's storage denies it ({status})", wait)
    except errors.NotExistError:
        return EffectFailed.not_ready("NOT_THERE", f"the hub does not have it ({status})")
    except (errors.RateLimitError, errors.QuotaExceededError):
        return transient("RATE_LIMITED", f"the hub asks for patience ({status})", wait)
    except errors.ServerError:
        return transient("HUB_FAILED", f"the hub failed ({status})", wait)
    except errors.HubError:
        return transient("HUB_REFUSED", f"the hub refuses the question ({status})", wait)
    return not_understood(f"the hub answers with status {status}")


def _as_response(refusal: Refusal) -> Any:  # noqa: ANN401  a response of a library that is not used otherwise
    return refusal
