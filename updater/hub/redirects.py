"""Which redirects of a hub are followed, and which of them may see the token. Pure.

Rules of trust:
 1. Only plain addresses, see `updater.http.endpoint`; from https never back to http.
 2. No private address (loopback, link-local, a network of one's own), unless the endpoint itself has one, or the
    operator has named the host.
 3. At most MAX_REDIRECTS, none to an address that was asked already.
 4. The token goes to the endpoint's own scheme, host and port; once a redirect has left them it stays behind for good.
"""

from dataclasses import dataclass, replace
from urllib.parse import urljoin

from updater.core.ports import EffectFailed
from updater.http.endpoint import Endpoint, is_private_by_name, is_public, parse_endpoint

MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class RedirectChain:
    """The addresses that one question has been sent to, and the one that it goes to next."""

    current: Endpoint
    home: Endpoint  # of the hub
    visited: frozenset[str]  # URLs, the current one included
    has_left: bool = False  # a redirect has led away from the hub's own endpoint
    is_home_private: bool = False  # the hub's own endpoint has a private address

    @property
    def may_carry_token(self) -> bool:
        """Rule 4."""
        return not self.has_left and self.current.origin == self.home.origin

    def may_reach(self, address: str, private_hosts: frozenset[str]) -> bool:
        """Rule 2, for an address that the current host has."""
        is_configured = len(self.visited) == 1  # named by the operator, not by a redirect
        return is_configured or self.is_home_private or self.current.host in private_hosts or is_public(address)

    def with_address(self, address: str) -> "RedirectChain":
        """The chain after a connection; the first one shows the endpoint's own address. Empty: a proxy hides it."""
        if len(self.visited) > 1:
            return self
        is_private = not is_public(address) if address else is_private_by_name(self.current.host)
        return replace(self, is_home_private=is_private)


def start_chain(endpoint: str, target: str) -> RedirectChain:
    """The chain of a question that has not been redirected yet.

    Args:
        endpoint: checked before, without a slash at its end.
        target: path and query below it.
    """
    first = parse_endpoint(endpoint + target)
    return RedirectChain(first, replace(first, target="/"), frozenset({first.url}))


def follow_redirect(chain: RedirectChain, location: str) -> RedirectChain:
    """The chain with the address that a redirect names, by rules 1 and 3.

    Raises:
        EffectFailed: it is not followed.
    """
    if len(chain.visited) > MAX_REDIRECTS:
        raise _circle(f"the hub redirects more than {MAX_REDIRECTS} times")
    try:
        following = parse_endpoint(urljoin(chain.current.url, location))
    except ValueError as error:
        raise _refused(f"the hub redirects to what {error}") from error
    if chain.current.scheme == "https" and following.scheme == "http":
        raise _refused(f"the hub redirects from https to plain http at {following.host}")
    if following.url in chain.visited:
        raise _circle(f"the hub redirects in a circle, by {following.host}")
    has_left = chain.has_left or following.origin != chain.home.origin
    return replace(chain, current=following, visited=chain.visited | {following.url}, has_left=has_left)


def _refused(message: str) -> EffectFailed:
    return EffectFailed.denied("REDIRECT_REFUSED", message)


def _circle(message: str) -> EffectFailed:
    return EffectFailed.transient("REDIRECT_CIRCLE", message)
