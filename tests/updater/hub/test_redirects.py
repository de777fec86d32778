"""Which redirects of a hub are followed, and with what."""

import pytest

from updater.core.ports import EffectFailed
from updater.hub.redirects import RedirectChain, follow_redirect, start_chain

HUB = "https://hub.example/base"


def refused(chain: RedirectChain, location: str) -> str:
    """Reason with which a redirect is not followed."""
    with pytest.raises(EffectFailed) as caught:
        follow_redirect(chain, location)
    return caught.value.failure.reason


@pytest.mark.fault("N15")
def test_the_token_is_not_sent_after_a_redirect_has_left_the_origin() -> None:
    """Another host, port or scheme; a redirect back does not change that."""
    chain = start_chain(HUB, "/file")
    assert chain.may_carry_token
    assert follow_redirect(chain, "/other").may_carry_token
    for elsewhere in ("https://storage.example/file", "https://hub.example:8443/base/file"):
        away = follow_redirect(chain, elsewhere)
        assert not away.may_carry_token
        assert not follow_redirect(away, f"{HUB}/file?again").may_carry_token


@pytest.mark.fault("N15")
def test_a_redirect_to_an_invalid_url_is_refused() -> None:
    """Also another scheme, and http after https."""
    chain = start_chain(HUB, "/file")
    for location in ("http://hub.example/base/file", "gopher://hub.example/", "https://a:b@hub.example/"):
        assert refused(chain, location) == "REDIRECT_REFUSED"


@pytest.mark.fault("N15")
def test_a_loop_is_refused() -> None:
    """After a repeated URL, or five redirects."""
    chain = start_chain(HUB, "/file")
    assert refused(chain, "/base/file") == "REDIRECT_CIRCLE"
    for number in range(5):
        chain = follow_redirect(chain, f"https://h{number}.example/")
    assert refused(chain, "https://one-more.example/") == "REDIRECT_CIRCLE"


@pytest.mark.fault("N15")
def test_a_redirect_reaches_no_private_address() -> None:
    """Unless the endpoint is private, or the operator has configured the host."""
    asked = start_chain(HUB, "/file")
    assert asked.may_reach("10.0.0.1", frozenset())
    away = follow_redirect(asked.with_address("8.8.8.8"), "https://storage.example/file")
    assert away.may_reach("9.9.9.9", frozenset())
    assert not away.may_reach("10.0.0.1", frozenset())
    assert away.may_reach("10.0.0.1", frozenset({"storage.example"}))
    within = follow_redirect(asked.with_address("10.0.0.2"), "https://storage.example/file")
    assert within.may_reach("10.0.0.1", frozenset())
