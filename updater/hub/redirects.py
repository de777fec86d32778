"""Decides which redirects of a hub are followed, and which requests carry the token. Pure.

Security rules:
 1. Only valid http and https URLs (see `updater.http.endpoint`), and never from https to http.
 2. No private address (loopback, link-local, private network), unless the endpoint itself has one or the operator
    has configured the host.
 3. At most MAX_REDIRECTS, and no URL twice.
 4. The token is sent only to the endpoint's own scheme, host and port, and never after a redirect has left them.
"""

from dataclasses import dataclass, replace
from urllib.parse import urljoin

from updater.core.ports import EffectFailed
from updater.http.endpoint import Endpoint, is_private_by_name, is_public, parse_endpoint

MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class RedirectChain:
    """The URLs that one request has been sent to, and the next one."""

    current: Endpoint
    home: Endpoint  # of the hub
    visited: frozenset[str]  # URLs, the current one included
    has_left: bool = False  # a redirect has left the hub's own origin
    is_home_private: bool = False  # the hub's own endpoint has a private address

    @property
    def may_carry_token(self) -> bool:
        """Whether the next request may carry the token (rule 4)."""
        return not self.has_left and self.current.origin == self.home.origin

    def may_reach(self, address: str, private_hosts: frozenset[str]) -> bool:
        """Whether an IP address of the current host is allowed (rule 2)."""
        is_configured = len(self.visited) == 1  # named by the operator, not by a redirect
        return is_configured or self.is_home_private or self.current.host in private_hosts or is_public(address)

    def with_address(self, address: str) -> "RedirectChain":
        """The chain after a connection; the first one is to the endpoint itself.

        Args:
            address: IP address of the connection; empty if a proxy resolved it.
        """
        if len(self.visited) > 1:
            return self
        is_private = not is_public(address) if address else is_private_by_name(self.current.host)
        return replace(self, is_home_private=is_private)


def start_chain(endpoint: str, target: str) -> RedirectChain:
    """The chain of a request that has not been redirected yet.

    Args:
        endpoint: validated, without a trailing slash.
        target: path and query below it.
    """
    first = parse_endpoint(endpoint + target)
    return RedirectChain(first, replace(first, target="/"), frozenset({first.url}))


def follow_redirect(chain: RedirectChain, location: str) -> RedirectChain:
    """The chain with the URL of a redirect, after checking rules 1 and 3.

    Raises:
        EffectFailed: the redirect is refused.
    """
    if len(chain.visited) > MAX_REDIRECTS:
        raise _build_loop_error(f"the hub redirects more than {MAX_REDIRECTS} times")
    try:
        following = parse_endpoint(urljoin(chain.current.url, location))
    except ValueError as error:
        raise _build_refusal(f"the hub redirects to an invalid URL: it {error}") from error
    if chain.current.scheme == "https" and following.scheme == "http":
        raise _build_refusal(f"the hub redirects from https to plain http at {following.host}")
    if following.url in chain.visited:
        raise _build_loop_error(f"the hub redirects in a loop, through {following.host}")
    has_left = chain.has_left or following.origin != chain.home.origin
    return replace(chain, current=following, visited=chain.visited | {following.url}, has_left=has_left)


def _build_refusal(message: str) -> EffectFailed:
    return EffectFailed.denied("REDIRECT_REFUSED", message)


def _build_loop_error(message: str) -> EffectFailed:
    return EffectFailed.transient("REDIRECT_CIRCLE", message)
