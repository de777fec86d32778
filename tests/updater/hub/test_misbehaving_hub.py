"""A misbehaving hub on a real socket: the failure is classified, and the next request succeeds."""

import hashlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.clock import SystemClock
from dev.harness.revisions import MODEL
from tests.updater.hub.conftest import REVISION, WEIGHTS, WHOLE, HubBench, failure
from tests.updater.scripted_hub import (
    Act,
    Exchange,
    ScriptedHub,
    drips,
    drips_head,
    endless,
    redirects_to,
    resets_after,
    says,
    shows_disguised_page,
    shows_page,
    stalls,
    stalls_after,
    truncates_after,
)
from updater.core.effects import FailureKind
from updater.status import Share
from updater.store.transfer import PaceRules, enforce_pace

CERTIFICATE = Path(__file__).with_name("certificate.pem")  # of 127.0.0.1, signed by itself, of no use elsewhere
SHORT = 0.3  # seconds for what never ends
MIB = 1 << 20
WORD = "word-that-nobody-else-may-know"


def read_weights(bench: HubBench, seconds: float = WHOLE) -> bytes:
    """The weights, as a transfer asks for them."""
    return b"".join(bench.hub.read(REVISION, WEIGHTS, 0, seconds))


def reason_of(bench: HubBench, act: Act, seconds: float = WHOLE) -> tuple[str, str, str]:
    """Reasons with which revisions, a listing and a file fail; afterwards all of it works again."""
    reasons = []
    for kind, ask in _questions(bench, seconds):
        bench.server.fails(act, kind)
        failed = failure(ask)
        assert failed.kind in (FailureKind.TRANSIENT, FailureKind.DENIED)
        reasons.append(failed.reason)
        short = bench.rules
        bench.rules = replace(short, stall_seconds=WHOLE, connect_seconds=WHOLE)
        ask()
        bench.rules = short
    return reasons[0], reasons[1], reasons[2]


def _questions(bench: HubBench, seconds: float) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("revisions", lambda: bench.hub.revisions(seconds)),
        ("listing", lambda: bench.hub.release(REVISION, seconds)),
        ("file", lambda: read_weights(bench, seconds)),
    ]


@pytest.mark.fault("N1")
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_transient(bench: HubBench, status: int) -> None:
    """For every kind of request."""
    assert reason_of(bench, says(status)) == ("HUB_FAILED",) * 3


@pytest.mark.fault("N3")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [("17", 17.0), ("1.5", 1.5), ("", 0.0), ("-3", 0.0), ("soon", 0.0), ("9" * 9, 86400.0), ("1" * 400, 0.0)],
)
def test_retry_after_in_seconds_is_respected(bench: HubBench, value: str, seconds: float) -> None:
    """Invalid values are ignored; a day is the maximum."""
    bench.server.fails(says(429, Retry_After=value))
    failed = failure(lambda: bench.hub.revisions(WHOLE))
    assert ("RATE_LIMITED", seconds) == (failed.reason, failed.retry_after_seconds)


@pytest.mark.fault("N3")
def test_retry_after_as_a_date_is_respected(bench: HubBench) -> None:
    """By the wall clock; a date in the past is ignored."""
    for year, is_far in (("2020", False), ("2199", True)):
        bench.server.fails(says(503, Retry_After=f"Wed, 21 Oct {year} 07:28:00 GMT"))
        assert (86400.0 if is_far else 0.0) == failure(lambda: bench.hub.revisions(WHOLE)).retry_after_seconds


@pytest.mark.fault("N4")
@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_needs_a_setting(bench: HubBench, status: int) -> None:
    """Waiting does not help."""
    bench.server.fails(says(status), times=3)
    for _, ask in _questions(bench, WHOLE):
        failed = failure(ask)
        assert (failed.kind, failed.reason) == (FailureKind.DENIED, "HUB_DENIED")
        assert "hub_token" in failed.message


@pytest.mark.fault("N4")
def test_denied_access_is_recognised_by_the_hubs_own_code(bench: HubBench) -> None:
    """The HTTP status alone would mean a bad request."""
    body = b'{"Code": 10010103009, "Message": "token", "Success": false}'
    for status in (400, 200):
        bench.server.fails(says(status, body, Content_Type="application/json"))
        assert failure(lambda: bench.hub.revisions(WHOLE)).reason == "HUB_DENIED"


def test_denied_access_by_the_storage_is_transient(bench: HubBench) -> None:
    """The signature of the URL has expired; the hub issues a new one."""
    with ScriptedHub(bench.folder / "nothing") as storage:
        storage.fails(says(403))
        bench.server.fails(redirects_to(f"{storage.url}/signed"), "file")
        failed = failure(lambda: read_weights(bench))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "STORAGE_DENIED")


@pytest.mark.fault("N5")
def test_an_unresolvable_host_is_transient(bench: HubBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is down, or the endpoint is misspelt."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    failed = failure(lambda: bench.hub.revisions(WHOLE))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "HUB_UNRESOLVED")


@pytest.mark.fault("N6")
def test_an_untrusted_certificate_is_refused(bench: HubBench) -> None:
    """No request is sent; with hub_ca_file it is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with ScriptedHub(bench.folder / "hub" / MODEL, context) as secure:
        bench.rules = replace(bench.rules, endpoint=secure.url)
        failed = failure(lambda: bench.hub.revisions(WHOLE))
        assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "TLS_FAILED")
        assert secure.asked == []
        bench.rules = replace(bench.rules, ca_file=CERTIFICATE)
        assert bench.hub.revisions(WHOLE) == (REVISION,)
        bench.stage()


@pytest.mark.fault("N6")
def test_a_new_ca_file_is_used_and_a_missing_one_reported(bench: HubBench, tmp_path: Path) -> None:
    """Without a restart; the message names the setting, not the path."""
    context, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"
    context.load_cert_chain(CERTIFICATE)
    with ScriptedHub(bench.folder / "hub" / MODEL, context) as secure:
        bench.rules = replace(bench.rules, endpoint=secure.url, ca_file=trusted)
        hub = bench.hub
        failed = failure(lambda: hub.revisions(WHOLE))
        assert (failed.kind, failed.reason) == (FailureKind.DENIED, "TLS_FILES_UNUSABLE")
        assert failed.message == "a file of updater.hub_ca_file cannot be used: no such file or directory"
        trusted.write_bytes(CERTIFICATE.read_bytes())
        assert hub.revisions(WHOLE) == (REVISION,)


@pytest.mark.fault("N6")
def test_a_server_without_tls_gets_no_request(bench: HubBench) -> None:
    """There is no fallback from https to http."""
    bench.rules = replace(bench.rules, endpoint=bench.server.url.replace("http:", "https:"))
    assert failure(lambda: bench.hub.revisions(WHOLE)).reason == "TLS_FAILED"


@pytest.mark.fault("N7")
def test_a_connection_that_is_not_accepted_is_transient(bench: HubBench) -> None:
    """A full backlog times out; a closed port fails at once."""
    bench.impatient()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as busy:
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(busy.getsockname())
        bench.rules = replace(bench.rules, endpoint=f"http://127.0.0.1:{busy.getsockname()[1]}")
        failed = failure(lambda: bench.hub.revisions(WHOLE))
        for one in waiting:
            one.close()
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "HUB_UNREACHABLE")
    assert "in time" in failed.message
    assert "refused" in failure(lambda: bench.hub.revisions(WHOLE)).message


@pytest.mark.fault("N8")
@pytest.mark.parametrize("act", [stalls, stalls_after(0), stalls_after(2)])
def test_a_stalled_response_is_cut_off(bench: HubBench, act: Act) -> None:
    """Before the response, or in the middle of it."""
    bench.impatient()
    assert reason_of(bench, act) == ("HUB_STALLED",) * 3


@pytest.mark.fault("N9")
@pytest.mark.parametrize("act", [drips, drips_head])
def test_a_response_byte_by_byte_is_cut_off(bench: HubBench, act: Act) -> None:
    """Each read is in time, but the deadline covers the whole response."""
    for kind, ask in _questions(bench, SHORT):
        bench.server.fails(act, kind)
        assert failure(ask).reason == "HUB_SLOW"


@pytest.mark.fault("N9")
def test_a_slow_download_is_cancelled(bench: HubBench) -> None:
    """Long before its deadline; downloaded bytes are kept."""
    bench.pace = PaceRules(min_bytes_a_second=1e6, window_seconds=0.5)
    release = bench.release()
    bench.server.fails(drips, "file", name=WEIGHTS)
    failed = failure(lambda: bench.stage(release, 60.0))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "HUB_SLOW")
    assert 0 < (bench.staged / WEIGHTS).stat().st_size < 4096
    bench.pace = PaceRules()
    assert release.source_digest == bench.stage(release)


@pytest.mark.fault("N10")
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_reset_connection_is_transient(bench: HubBench, count: int) -> None:
    """At any point of the response."""
    assert reason_of(bench, resets_after(count)) == ("HUB_BROKE_OFF",) * 3


@pytest.mark.fault("N10")
def test_a_reset_download_continues_where_it_broke(bench: HubBench) -> None:
    """Kept bytes are hashed again, and only the rest is requested."""
    release = bench.release()
    bench.server.fails(resets_after(1000), "file", name=WEIGHTS)
    failed = failure(lambda: bench.stage(release))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "HUB_BROKE_OFF")
    kept = (bench.staged / WEIGHTS).stat().st_size
    bench.server.asked.clear()
    assert release.source_digest == bench.stage(release)
    (asked,) = [one for one in bench.server.of_kind("file") if one.query["FilePath"] == WEIGHTS]
    assert kept == asked.range_begin


@pytest.mark.fault("N11")
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_truncated_response_is_transient(bench: HubBench, count: int) -> None:
    """It is shorter than its Content-Length."""
    assert reason_of(bench, truncates_after(count)) == ("HUB_BROKE_OFF",) * 3


@pytest.mark.fault("N12")
def test_an_endless_response_is_cut_off(bench: HubBench) -> None:
    """A listing has a size limit; a file must not be longer than listed."""
    for kind in ("revisions", "listing"):
        bench.server.fails(endless, kind)
    assert failure(lambda: bench.hub.revisions(WHOLE)).reason == "HUB_NOT_UNDERSTOOD"
    assert failure(bench.release).reason == "HUB_NOT_UNDERSTOOD"
    release = bench.release()
    bench.server.fails(endless, "file", times=2, name=WEIGHTS)
    failed = failure(lambda: bench.stage(release))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "CONTENT_MISMATCH")
    assert (bench.staged / WEIGHTS).stat().st_size <= 4096


@pytest.mark.fault("N13")
@pytest.mark.parametrize("act", [shows_page, shows_disguised_page])
def test_a_web_page_is_not_a_response(bench: HubBench, act: Act) -> None:
    """For example a login page of the network; the revision is not at fault."""
    assert reason_of(bench, act) == ("HUB_NOT_UNDERSTOOD",) * 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"Data": null}',
        b'{"Data": {}}',
        b'{"Data": []}',
        b'{"Data": {"RevisionMap": [], "Files": {}}}',
        b'{"Data": {"RevisionMap": {"Tags": {}}, "Files": [1]}}',
        b'{"Data": {"RevisionMap": {"Tags": "v9.9.9"}, "Files": [{"Path": 7, "Size": 1}]}}',
        b'{"Data": {"RevisionMap": null, "Files": [{"Path": "a", "Size": true}]}}',
        b'{"Data": {"RevisionMap": null, "Files": [{"Path": "a", "Size": 1, "Sha256": 7}]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_response_in_an_unknown_format_is_not_an_empty_hub(bench: HubBench, body: bytes) -> None:
    """Otherwise revisions would look deleted."""
    for kind, ask in _questions(bench, WHOLE)[:2]:
        bench.server.fails(says(200, body, Content_Type="application/json"), kind)
        assert failure(ask).reason == "HUB_NOT_UNDERSTOOD"


def test_a_compressed_response_is_refused(bench: HubBench) -> None:
    """It was not requested, and could decompress to any size."""
    assert reason_of(bench, says(200, b"x" * 100, Content_Encoding="gzip")) == ("HUB_NOT_UNDERSTOOD",) * 3


def test_a_server_that_does_not_speak_http_is_transient(bench: HubBench) -> None:
    """Another service listens on the port."""
    for answer in (b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 abc\r\n\r\n"):
        assert reason_of(bench, lambda exchange, answer=answer: exchange.send(answer)) == ("HUB_NOT_UNDERSTOOD",) * 3  # type: ignore[misc]


@pytest.mark.fault("N15")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_storage_is_followed_without_the_token(bench: HubBench, status: int) -> None:
    """Later requests of the same chain carry no token either."""
    bench.token = bench.server.token = WORD
    with ScriptedHub(bench.folder / "hub" / MODEL) as storage:
        release = bench.release()
        bench.server.fails(redirects_to(f"{storage.url}TARGET", status), "file", times=99)
        assert release.source_digest == bench.stage(release)
        assert storage.of_kind("file")
        for asked in storage.asked:
            assert not {"authorization", "cookie"} & set(asked.headers)
            assert WORD not in str(asked)
    for asked in bench.server.asked:
        assert (
            asked.headers["authorization"],
            asked.headers["cookie"],
        ) == (f"Bearer {WORD}", f"m_session_id={WORD}")


@pytest.mark.fault("N15")
def test_a_redirect_back_to_the_hub_carries_no_token(bench: HubBench) -> None:
    """The redirecting host may have chosen the URL."""
    bench.token = WORD
    with ScriptedHub(bench.folder / "nothing") as other:
        other.fails(redirects_to(f"{bench.server.url}/back"))
        bench.server.fails(redirects_to(f"{other.url}/away"))
        failure(lambda: bench.hub.revisions(WHOLE))
    assert ["authorization" in asked.headers for asked in bench.server.asked] == [True, False]


@pytest.mark.fault("N15")
def test_a_redirect_to_a_private_address_is_refused(bench: HubBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before connecting, unless the endpoint is private or the host is configured."""
    monkeypatch.setattr("updater.hub.redirects.is_public", lambda address: address == "127.0.0.1")
    with ScriptedHub(bench.folder / "hub" / MODEL, host="127.0.0.2") as private:
        bench.server.fails(redirects_to(f"{private.url}TARGET"), times=2)
        failed = failure(lambda: bench.hub.revisions(WHOLE))
        assert (failed.kind, failed.reason) == (FailureKind.DENIED, "ADDRESS_REFUSED")
        assert private.taken == 0
        bench.rules = replace(bench.rules, private_hosts=frozenset({"127.0.0.2"}))
        assert bench.hub.revisions(WHOLE) == (REVISION,)


@pytest.mark.fault("N15")
def test_a_redirect_loop_ends(bench: HubBench) -> None:
    """Whether it repeats a URL or always uses a new one."""
    bench.server.fails(redirects_to("TARGET"))
    assert failure(lambda: bench.hub.revisions(WHOLE)).reason == "REDIRECT_CIRCLE"
    bench.server.asked.clear()

    def leads_on(exchange: Exchange) -> None:
        redirects_to(f"/{len(bench.server.asked)}")(exchange)

    bench.server.fails(leads_on, times=99)
    assert failure(lambda: bench.hub.revisions(WHOLE)).reason == "REDIRECT_CIRCLE"
    assert len(bench.server.asked) == 6


def test_a_redirect_without_a_location_is_transient(bench: HubBench) -> None:
    """There is no URL to follow."""
    assert reason_of(bench, says(302)) == ("HUB_NOT_UNDERSTOOD",) * 3


def test_a_different_range_is_refused(bench: HubBench) -> None:
    """Its bytes would damage the partial file."""
    for place in ("bytes 0-9/4096", "bytes 5-9/4096", "", "bytes */4096"):
        bench.server.fails(says(206, b"0123456789", Content_Range=place))
        failed = failure(lambda: list(bench.hub.read(REVISION, WEIGHTS, 100, WHOLE)))
        assert failed.reason == "HUB_NOT_UNDERSTOOD"


def test_a_hub_that_ignores_range_works(bench: HubBench) -> None:
    """The earlier bytes are skipped."""
    whole = read_weights(bench)
    bench.server.ignores_range = True
    assert whole[7:] == b"".join(bench.hub.read(REVISION, WEIGHTS, 7, WHOLE))


class TickingClock(SystemClock):
    """A second passes at each look: a megabyte takes some."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def monotonic(self) -> float:
        """A second later."""
        self._seconds += 1.0
        return self._seconds


@pytest.mark.fault("H18")
def test_bytes_that_are_passed_over_count_for_the_speed(bench: HubBench) -> None:
    """On a slow line with a hub that ignores Range, a download continues as long as bytes come."""
    place = bench.publish("v1.0.1", weights_bytes=4 * MIB)
    content = (place / WEIGHTS).read_bytes()
    bench.server.ignores_range = True
    bench.clock = TickingClock()  # the client looks at it for every piece that comes
    pieces = bench.hub.read("v1.0.1", WEIGHTS, len(content) - 10, 1e6)
    rules = PaceRules(min_bytes_a_second=100.0, window_seconds=5.0)
    assert b"".join(enforce_pace(pieces, rules, bench.clock, WEIGHTS)) == content[-10:]


def test_a_repeatedly_broken_connection_still_brings_a_large_file(bench: HubBench) -> None:
    """Each attempt that makes progress is resumed at once, without hashing again."""
    bench.publish("v1.0.1", weights_bytes=20 * MIB)
    release = bench.hub.release("v1.0.1", WHOLE)
    bench.server.asked.clear()
    bench.server.fails(truncates_after(6 * MIB), "file", times=2, name=WEIGHTS)
    assert release.source_digest == bench.stage(release)
    asked = [one.range_begin for one in bench.server.of_kind("file") if one.query["FilePath"] == WEIGHTS]
    assert asked == [0, 6 * MIB, 12 * MIB]
    content = (bench.staged / WEIGHTS).read_bytes()
    assert hashlib.sha256(content).hexdigest() == next(f.sha256 for f in release.files if f.name == WEIGHTS)


def test_the_progress_of_a_download_is_shown(bench: HubBench) -> None:
    """Downloaded and total bytes; nothing afterwards."""
    seen: list[Share] = []
    release = bench.release()

    def look(exchange: Exchange) -> None:
        seen.append(bench.progress.share)
        truncates_after(1000)(exchange)

    bench.server.fails(look, "file", name=WEIGHTS)
    failure(lambda: bench.stage(release))
    total = sum(file.size for file in release.files)
    assert [Share(total - 4096 - 2, total)] == seen
    assert bench.progress.share.total_bytes == 0
