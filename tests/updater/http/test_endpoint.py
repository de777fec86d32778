"""Addresses that may be asked, and which of them are private."""

import pytest

from updater.http.endpoint import is_private_by_name, is_public, parse_endpoint


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
def test_a_private_address_is_not_public(address: str) -> None:
    """In any notation."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_public(address: str) -> None:
    """In any notation."""
    assert is_public(address)


@pytest.mark.parametrize(("host", "is_private"), [("localhost", True), ("10.0.0.1", True), ("hub.example", False)])
def test_a_host_behind_a_proxy_is_judged_by_its_name(host: str, *, is_private: bool) -> None:
    """Its address is not known here."""
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
def test_ambiguous_urls_are_refused(url: str) -> None:
    """Other schemes, user names, control characters, and URLs that are too long."""
    with pytest.raises(ValueError, match="is "):
        parse_endpoint(url)


def test_a_url_is_normalized() -> None:
    """It always has a path, and a port only if it is not the default: signed URLs depend on it."""
    assert (
        parse_endpoint("https://hub.example:443").url
        == parse_endpoint("https://HUB.example").url
        == "https://hub.example/"
    )
    assert parse_endpoint("http://[::1]:8080/a?b=c").url == "http://[::1]:8080/a?b=c"
