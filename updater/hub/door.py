"""The one way out: GET over urllib3, with nothing left to a library that could go wrong for us.

Every request has its own connection and its own end in time. Redirects are followed by the rules of `places`; nothing
is retried, unpacked, remembered or read without a limit here.
"""

import contextlib
import http.client
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from common.clock import Clock
from updater.hub.connection import AddressRefused, Deadline, Opener, ProxyUnsupported, connection_to
from updater.hub.faults import broken_off, denied, not_understood, transient, unreached
from updater.hub.places import Way, beginning, is_private_by_name, place_of, redirected
from updater.ports import MAX_PIECE_BYTES

AGENT = "hotslot"
_OK, _PARTIAL = 200, 206
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ERRORS = (OSError, HTTPError, http.client.HTTPException, ValueError)
# It writes addresses with their signatures into the log of whoever has not forbidden it.
logging.getLogger("urllib3.connection").disabled = True


@dataclass(frozen=True, slots=True)
class DoorRules:
    """Where the door leads, and how long anything may take."""

    endpoint: str  # for example "https://hub.example:8443/models", without a slash at its end
    private_hosts: frozenset[str] = frozenset()  # redirects may lead to these though they are private
    ca_file: Path | None = None  # of a hub with a certificate of one's own
    connect_seconds: float = 10.0
    stall_seconds: float = 20.0  # longest silence; an operator's wish waits no longer than 25


class Answer:
    """What one place answered; its body is read once."""

    def __init__(self, response: BaseHTTPResponse, host: str, deadline: Deadline, *, is_home: bool) -> None:
        """Read nothing yet."""
        self._response = response
        self._deadline = deadline
        self.host = host
        self.is_home = is_home

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
    def headers(self) -> Mapping[str, str]:
        """Headers, by any case of their names."""
        return self._response.headers

    def header(self, name: str) -> str:
        """One header; empty if it is not there."""
        return self._response.headers.get(name, "")

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes: no piece is waited for to become larger.

        Raises:
            EffectFailed: it broke off, fell silent, or its time is over.
        """
        if self.header("content-encoding").lower() not in ("", "identity"):
            raise not_understood(f"{self.host} packs what it was asked not to pack")
        while True:
            try:
                piece = self._response.read1(MAX_PIECE_BYTES, decode_content=False)
            except _ERRORS as error:
                raise broken_off(error, self.host, is_over=self._deadline.is_over) from error
            if self._deadline.is_over:  # what was cut off can look like an end
                raise transient("HUB_SLOW", f"{self.host} took longer than there was time")
            if not piece:
                return
            yield piece

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


class Door:
    """Asks one hub. From one thread at a time."""

    def __init__(
        self, rules: DoorRules, clock: Clock, token: Callable[[], str], proxy_for: Callable[[str, str], str]
    ) -> None:
        """Ask nothing yet.

        Args:
            rules: where it leads.
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
        return place_of(self._rules.endpoint).authority

    @contextlib.contextmanager
    def get(self, target: str, deadline_seconds: float, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """Ask, and follow redirects.

        Args:
            target: path and query below the endpoint.
            deadline_seconds: for all of it, the body's end included.
            headers: beside our own.

        Raises:
            EffectFailed: no answer came. An error's status is an answer.
        """
        ends = self._clock.monotonic() + deadline_seconds
        way = beginning(self._rules.endpoint, target)
        while True:
            with contextlib.ExitStack() as held:
                answer, way = self._ask(way, ends, dict(headers or {}), held)
                if answer.status not in _REDIRECTS:
                    yield answer
                    return
                location = answer.header("location")
            if not location:
                raise not_understood(f"{answer.host} redirects nowhere")
            way = redirected(way, location)

    def _ask(self, way: Way, ends: float, headers: dict[str, str], held: contextlib.ExitStack) -> tuple[Answer, Way]:
        """One place's answer, and the way with what was learnt of it; `held` lets go of all."""
        place, host = way.place, way.place.host
        left = ends - self._clock.monotonic()
        if left <= 0:
            raise transient("HUB_SLOW", f"there was no time left to ask {host}")
        token = self._token() if way.may_carry_token else ""
        proxy = self._proxy_for(place.scheme, host)
        if proxy and is_private_by_name(host) and not way.may_reach(host, self._rules.private_hosts):
            raise denied("ADDRESS_REFUSED", f"{host} is a private address")
        deadline = Deadline(left)
        held.callback(deadline.close)

        def may_reach(address: str) -> bool:
            return bool(proxy) or way.may_reach(address, self._rules.private_hosts)

        opener = Opener(may_reach, min(self._rules.connect_seconds, left), deadline)
        try:
            connection, more = self._connect(way, opener, proxy)
        except (*_ERRORS, AddressRefused, ProxyUnsupported) as error:
            raise unreached(error, host, is_over=deadline.is_over) from error
        held.callback(connection.close)
        is_forwarded = proxy and place.scheme == "http"
        try:
            sent = {**self._our_headers(token), **headers, **more}
            url = place.url if is_forwarded else place.target
            connection.request("GET", url, headers=sent, preload_content=False, decode_content=False)
            response = connection.getresponse()
        except _ERRORS as error:
            raise broken_off(error, host, is_over=deadline.is_over) from error
        held.callback(response.close)
        return Answer(response, host, deadline, is_home=not way.has_left), way.reached("" if proxy else opener.reached)

    def _connect(self, way: Way, opener: Opener, proxy: str) -> tuple[HTTPConnection, dict[str, str]]:
        place = way.place
        connection, headers = connection_to(
            place.scheme,
            (place.host, place.port),
            opener,
            context=self._trust() if place.scheme == "https" else None,
            stall_seconds=self._rules.stall_seconds,
            proxy=proxy,
        )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection, headers

    def _trust(self) -> ssl.SSLContext:
        """Certificates of the system, or those of `ca_file`; read once."""
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._rules.ca_file)
        return self._context

    @staticmethod
    def _our_headers(token: str) -> dict[str, str]:
        headers = {"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
        if token:  # older parts of the hub know the cookie alone
            headers |= {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
        return headers
