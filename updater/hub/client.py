"""Asks one hub: GET, by the rules of `redirects` for addresses and the token, over the client of `updater.http`."""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock
from updater.core.ports import MAX_PIECE_BYTES
from updater.http.client import HttpFailed, HttpLimits, HttpRequest, HttpResponse, open_response
from updater.http.endpoint import is_private_by_name, parse_endpoint
from updater.hub.faults import denied, effect_of, not_understood, transient
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
