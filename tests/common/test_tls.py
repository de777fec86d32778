"""Certificates of listeners: what is refused, what is reported, and how they are replaced while they are in use."""

import ssl
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from common.reload import FileUnusable, Reloaded
from common.tls import (
    ServerContexts,
    TlsFiles,
    covers_name,
    find_ending,
    find_invalidity,
    load_certificate,
    watch_certificate,
)
from dev.harness.certificates import Authority, ListenerFiles, replace_file
from tests.common.clock import KeptLog, SimClock


@pytest.fixture
def listener(tmp_path: Path, authority: Authority) -> ListenerFiles:
    """The files of a listener, with a good certificate."""
    return ListenerFiles(tmp_path / "tls", authority.sign("server"), authority.certificate)


def test_a_certificate_tells_its_names_and_dates(listener: ListenerFiles) -> None:
    """By OpenSSL's own reading of it; the key is not in its text."""
    clock = SimClock()

    loaded = load_certificate(listener.files)

    assert loaded.names == ("localhost", "127.0.0.1", "0:0:0:0:0:0:0:1")
    assert loaded.not_after - loaded.not_before == timedelta(days=365)
    assert len(loaded.fingerprint) == 64
    assert (loaded.warnings, find_invalidity(loaded, clock.now()), find_ending(loaded, clock.now())) == ((), "", "")
    assert "PRIVATE KEY" not in repr(loaded)


def test_what_is_no_pair_is_refused_in_a_sentence(
    listener: ListenerFiles, authority: Authority, tmp_path: Path
) -> None:
    """The sentence says which file is wrong, and contains no path."""
    good, other = listener.files, authority.sign("other")
    encrypted, empty = tmp_path / "encrypted.key", tmp_path / "empty"
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    encrypted.chmod(0o600)
    empty.touch(0o600)
    cases = {
        "the key does not belong to the certificate": TlsFiles(good.certificate, other.key),
        "the key file has no private key in PEM": TlsFiles(good.certificate, other.certificate),
        "the key is encrypted": TlsFiles(good.certificate, encrypted),
        "the certificate file has no certificate in PEM": TlsFiles(good.key, good.key),
        "the certificate file cannot be read: no such file": TlsFiles(tmp_path / "none", good.key),
        "the client CA file has no certificate in PEM": TlsFiles(good.certificate, good.key, empty),
    }
    other.certificate.chmod(0o600)
    for sentence, files in cases.items():
        with pytest.raises(FileUnusable) as caught:
            load_certificate(files)
        assert str(caught.value).startswith(sentence)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "names", "kind", "warning"),
    [
        (0o644, ("DNS:a",), ("ec", "-pkeyopt", "ec_paramgen_curve:P-384"), "may read the key file (mode 0644)"),
        (0o600, (), ("rsa:2048",), "no subject alternative name"),
        (0o600, ("DNS:a",), ("ed25519",), "none of RSA, P-256 and P-384"),
    ],
)
def test_what_works_and_should_not_stay_so_is_a_warning(
    authority: Authority, mode: int, names: Sequence[str], kind: Sequence[str], warning: str
) -> None:
    """A key that everybody may read; a certificate that clients refuse."""
    pair = authority.sign("weak", names, key_kind=kind)
    pair.key.chmod(mode)

    (sentence,) = load_certificate(TlsFiles(pair.certificate, pair.key)).warnings

    assert warning in sentence


def test_a_key_that_everybody_may_write_is_refused(listener: ListenerFiles) -> None:
    """Whoever replaces it becomes this server."""
    listener.files.key.chmod(0o602)
    with pytest.raises(FileUnusable, match="every user of this machine may write the key file"):
        load_certificate(listener.files)


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        *((name, True) for name in ("shop.example", "SHOP.example.", "a.wild.example", "10.0.0.1")),
        *((name, False) for name in ("wild.example", "a.b.wild.example", "10.0.0.2")),
    ],
)
def test_a_name_is_covered_as_clients_see_it(authority: Authority, name: str, *, is_covered: bool) -> None:
    """A star stands for one label."""
    pair = authority.sign("names", ("DNS:shop.example", "DNS:*.wild.example", "IP:10.0.0.1"))
    loaded = load_certificate(TlsFiles(pair.certificate, pair.key))
    assert covers_name(loaded, name) == is_covered


def test_the_end_is_reported_two_weeks_before_or_in_the_last_fifth(authority: Authority) -> None:
    """A certificate for a day is not reported from its first moment."""
    clock = SimClock()
    for days, quiet, reported in ((365, 350, 352), (10, 7, 9)):
        pair = authority.sign("ending", days=days)
        loaded = load_certificate(TlsFiles(pair.certificate, pair.key))
        assert find_ending(loaded, clock.now() + timedelta(days=quiet)) == ""
        assert find_ending(loaded, clock.now() + timedelta(days=reported)).startswith("the certificate expires on 20")
        assert find_invalidity(loaded, clock.now() + timedelta(days=days + 1)).startswith("the certificate has expired")
        assert find_invalidity(loaded, clock.now() - timedelta(days=1)).startswith(
            "the certificate is not valid before"
        )


def test_a_replaced_pair_is_used_and_a_broken_one_is_not(listener: ListenerFiles, authority: Authority) -> None:
    """The old pair stays until the new one is whole; only what stays broken is reported."""
    clock, log = SimClock(), KeptLog()
    watched = watch_certificate(listener.files, log, clock)
    first, new = watched.value, authority.sign("new")

    replace_file(listener.files.certificate, new.certificate.read_bytes())
    watched.check()
    assert (watched.value, watched.failure, log.events) == (first, "", [])
    replace_file(listener.files.key, new.key.read_bytes())
    watched.check()
    assert (watched.value == first, watched.failure, log.events) == (False, "", ["certificate_loaded"])
    second = watched.value

    replace_file(listener.files.key, b"half a key")
    watched.check()
    watched.check()
    watched.check()
    assert (watched.value, log.events[1:]) == (second, ["certificate_refused"])
    assert watched.failure.startswith("the key file has no private key")
    listener.use(new)
    watched.check()
    assert (watched.value, watched.failure, log.events[2:]) == (second, "", ["certificate_loaded"])


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone", "/etc/secret"), ValueError("/etc/secret")])
def test_what_nobody_foresaw_is_a_failure_too(tmp_path: Path, error: Exception) -> None:
    """It ends neither the server nor its watch of the files, and no path is shown."""
    path = tmp_path / "file"
    path.touch()

    def load(current: int | None) -> int:
        if current is None:
            return 1
        raise error

    watched = Reloaded("value", (path,), load, KeptLog(), SimClock())
    path.write_text("changed")
    watched.check()
    watched.check()
    assert watched.value == 1
    assert watched.failure.startswith("the files cannot be used")
    assert "secret" not in watched.failure


def test_an_expired_certificate_does_not_replace_a_valid_one(listener: ListenerFiles, authority: Authority) -> None:
    """But a renewed one replaces an expired one, and the server starts with an expired one too."""
    clock, log = SimClock(), KeptLog()
    watched = watch_certificate(listener.files, log, clock)
    first = watched.value
    clock.advance(5 * 86400)
    listener.use(authority.sign("short", days=2))
    watched.check()
    watched.check()
    assert (watched.value, log.events) == (first, ["certificate_refused"])
    assert "has expired" in watched.failure
    assert find_invalidity(watch_certificate(listener.files, log, clock).value, clock.now()).startswith("the certif")


def test_what_is_refused_for_its_time_is_used_later(tmp_path: Path) -> None:
    """The clock of a CA may be ahead of ours: the files need not change again."""
    path, clock, log = tmp_path / "file", SimClock(), KeptLog()
    path.touch()
    valid_at = clock.seconds + 10

    def load(current: int | None) -> int:
        if current is not None and clock.seconds < valid_at:
            raise FileUnusable("not valid yet")
        return 1 if current is None else 2

    watched = Reloaded("value", (path,), load, log, clock)
    path.write_text("changed")
    for _ in range(3):
        watched.check()
    assert (watched.value, watched.failure, log.events) == (1, "not valid yet", ["value_refused"])
    clock.advance(10)
    watched.check()
    assert (watched.value, watched.failure, log.events[1:]) == (2, "", ["value_loaded"])


def test_a_listener_of_python_s_own_takes_the_new_certificate(listener: ListenerFiles, authority: Authority) -> None:
    """Within a second, without anything that looks at the files in the background."""
    clock = SimClock()
    contexts = ServerContexts(watch_certificate(listener.files, KeptLog(), clock))
    first = contexts.current()
    assert first.verify_mode is ssl.CERT_REQUIRED
    listener.use(authority.sign("later"))
    assert contexts.current() is first

    clock.advance(1.0)

    assert contexts.current() is not first
