"""Where a hub may send us: addresses, and the next place of a redirect. Pure.

Rules of trust:
 1. Only http and https; from https never back to http; no user name in it; nothing but printable ASCII.
 2. No private address (loopback, link-local, a network of one's own), unless the endpoint itself has one, or the
    operator has named the host.
 3. At most MAX_REDIRECTS, none to where one came from.
 4. The token goes to the endpoint's own scheme, host and port; once a redirect has left them it stays behind for good.
"""

import ipaddress
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

from updater.ports import EffectFailed
from updater.results import Failed, FaultKind

MAX_REDIRECTS = 5
MAX_URL_CHARS = 8192  # object storage signs its addresses at length
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address in its last four bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where one request goes."""

    scheme: str
    host: str  # lower case, without brackets
    port: int
    target: str  # path and query

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what a token is meant for."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """As one text. Its query may hold a signature: never to be shown."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def authority(self) -> str:
        """Host, and port if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Way:
    """How a request got to where it is."""

    place: Place
    home: Place  # the endpoint
    been: frozenset[str]
    has_left: bool = False  # a redirect has led away from the endpoint
    is_home_private: bool = False  # the endpoint has a private address itself

    @property
    def may_carry_token(self) -> bool:
        """Rule 4."""
        return not self.has_left and self.place.origin == self.home.origin

    def may_reach(self, address: str, private_hosts: frozenset[str]) -> bool:
        """Rule 2, for an address that the place's host has."""
        is_asked_for = len(self.been) == 1  # nobody but the operator has named it
        return is_asked_for or self.is_home_private or self.place.host in private_hosts or is_public(address)

    def reached(self, address: str) -> "Way":
        """The way with what the connection showed; the first address is the endpoint's own. Empty: a proxy hides it."""
        if len(self.been) > 1:
            return self
        is_private = not is_public(address) if address else is_private_by_name(self.place.host)
        return replace(self, is_home_private=is_private)


def place_of(url: str) -> Place:
    """Read an address, by rule 1.

    Raises:
        ValueError: it is none that may be asked.
    """
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("is too long, or not plain")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError("is no plain http or https address")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise ValueError("is an address with a port that none has") from error
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, parts.hostname.lower(), port, target)


def beginning(endpoint: str, target: str) -> Way:
    """The first place of a request.

    Args:
        endpoint: checked before, without a slash at its end.
        target: path and query below it.
    """
    place = place_of(endpoint + target)
    return Way(place, replace(place, target="/"), frozenset({place.url}))


def redirected(way: Way, location: str) -> Way:
    """Follow a redirect, by rules 1 and 3.

    Raises:
        EffectFailed: it is not followed.
    """
    if len(way.been) > MAX_REDIRECTS:
        raise _circle(f"the hub redirects more than {MAX_REDIRECTS} times")
    try:
        place = place_of(urljoin(way.place.url, location))
    except ValueError as error:
        raise _refused(f"the hub redirects to what {error}") from error
    if way.place.scheme == "https" and place.scheme == "http":
        raise _refused(f"the hub redirects from https to plain http at {place.host}")
    if place.url in way.been:
        raise _circle(f"the hub redirects in a circle, by {place.host}")
    has_left = way.has_left or place.origin != way.home.origin
    return replace(way, place=place, been=way.been | {place.url}, has_left=has_left)


def is_public(address: str) -> bool:
    """Whether an address belongs to the open network; one that holds another is judged by that."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast


def is_private_by_name(host: str) -> bool:
    """Whether a host's name alone says that it is private; for hosts that only a proxy resolves."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return not is_public(host)


def _refused(message: str) -> EffectFailed:
    return EffectFailed(Failed(FaultKind.DENIED, "REDIRECT_REFUSED", message))


def _circle(message: str) -> EffectFailed:
    return EffectFailed(Failed(FaultKind.TRANSIENT, "REDIRECT_CIRCLE", message))
