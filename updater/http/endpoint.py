"""Parses http and https URLs, and recognises private addresses. Pure.

Security rule: only http and https; no user name; only printable ASCII, of bounded length.
"""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL_CHARS = 8192  # signed URLs of object storage are long
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # contains an IPv4 address in the last four bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The URL of one request, parsed."""

    scheme: str
    host: str  # lower case, without brackets
    port: int
    target: str  # path and query

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: the scope of a token."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """As one string. The query may contain a signature: never log it."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def authority(self) -> str:
        """Host, and the port if it is not the default of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_endpoint(url: str) -> Endpoint:
    """Parse a URL.

    Raises:
        ValueError: it is not a valid URL by the security rule; the message completes "the URL …".
    """
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("is too long, or contains spaces or characters that are not printable ASCII")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError("is not an http or https URL, or contains a user name")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise ValueError("is a URL with an invalid port") from error
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(parts.scheme, parts.hostname.lower(), port, target)


def is_public(address: str) -> bool:
    """Whether an IP address is public; an IPv6 address that contains an IPv4 one is judged by the latter."""
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
    """Whether a host is private by its name or literal address alone; for hosts that a proxy resolves."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return not is_public(host)
