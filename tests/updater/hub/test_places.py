"""Where a hub may send us."""

import pytest

from updater.hub.places import Way, beginning, is_private_by_name, is_public, place_of, redirected
from updater.ports import EffectFailed

HUB = "https://hub.example/base"


def refused(way: Way, location: str) -> str:
    """Reason with which a redirect is not followed."""
    with pytest.raises(EffectFailed) as caught:
        redirected(way, location)
    return caught.value.failed.reason


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep their secrets
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104  asked about, not bound
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "64:ff9b::a00:1",  # NAT64 of 10.0.0.1
        "nonsense",
    ],
)
def test_an_address_of_ones_own_network_is_not_public(address: str) -> None:
    """However it is written."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_of_the_open_network_is_public(address: str) -> None:
    """However it is written."""
    assert is_public(address)


@pytest.mark.parametrize(("host", "is_private"), [("localhost", True), ("10.0.0.1", True), ("hub.example", False)])
def test_a_name_that_only_a_proxy_resolves_is_judged_by_itself(host: str, *, is_private: bool) -> None:
    """There is nothing else to judge by."""
    assert is_private == is_private_by_name(host)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hub.example/",
        "file:///etc/passwd",
        "https://user:secret@hub.example/",
        "https://",
        "https://hub.example:99999/",
        "https://hub.example/a b",
        "https://hub.example/\r\nHost: other",
        "https://höb.example/",
        "https://hub.example/" + "a" * 9000,
        "//hub.example",
    ],
)
def test_only_plain_addresses_are_asked(url: str) -> None:
    """Nothing that two readers could read in two ways."""
    with pytest.raises(ValueError, match="is "):
        place_of(url)


def test_an_address_has_one_form() -> None:
    """A path is always there, a port where it is not the usual one: storages sign what they are called by."""
    assert "https://hub.example/" == place_of("https://HUB.example").url == place_of("https://hub.example:443").url
    assert "http://[::1]:8080/a?b=c" == place_of("http://[::1]:8080/a?b=c").url


@pytest.mark.fault("N15")
def test_a_token_stays_at_the_endpoint_once_a_redirect_has_left_it() -> None:
    """Another host, port or scheme is elsewhere; who comes back is not trusted again."""
    way = beginning(HUB, "/file")
    assert way.may_carry_token
    assert redirected(way, "/other").may_carry_token
    for elsewhere in ("https://storage.example/file", "https://hub.example:8443/base/file"):
        away = redirected(way, elsewhere)
        assert not away.may_carry_token
        assert not redirected(away, f"{HUB}/file?again").may_carry_token


@pytest.mark.fault("N15")
def test_a_redirect_to_what_is_not_plain_is_refused() -> None:
    """Neither another protocol, nor a way out of https."""
    way = beginning(HUB, "/file")
    for location in ("http://hub.example/base/file", "gopher://hub.example/", "https://a:b@hub.example/"):
        assert "REDIRECT_REFUSED" == refused(way, location)


@pytest.mark.fault("N15")
def test_a_circle_ends() -> None:
    """Where one has been, or after five."""
    way = beginning(HUB, "/file")
    assert "REDIRECT_CIRCLE" == refused(way, "/base/file")
    for number in range(5):
        way = redirected(way, f"https://h{number}.example/")
    assert "REDIRECT_CIRCLE" == refused(way, "https://one-more.example/")


@pytest.mark.fault("N15")
def test_a_redirect_reaches_no_private_address() -> None:
    """Unless the endpoint has one itself, or the operator has named the host."""
    asked = beginning(HUB, "/file")
    assert asked.may_reach("10.0.0.1", frozenset())
    away = redirected(asked.reached("8.8.8.8"), "https://storage.example/file")
    assert away.may_reach("9.9.9.9", frozenset())
    assert not away.may_reach("10.0.0.1", frozenset())
    assert away.may_reach("10.0.0.1", frozenset({"storage.example"}))
    within = redirected(asked.reached("10.0.0.2"), "https://storage.example/file")
    assert within.may_reach("10.0.0.1", frozenset())
