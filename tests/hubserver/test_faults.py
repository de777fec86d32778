"""Each injected fault happens exactly as specified, so that tests that use it are valid."""

import contextlib
import http.client
import socket
import time
from pathlib import Path

import pytest

from dev.harness.faulty_hub.faults import FaultUnknown, HubFaultKind, parse_faults
from dev.harness.faulty_hub.injection import HTML, SMUGGLED
from dev.harness.hub import FILES, MODEL, Hub, hub
from dev.harness.process import ROOT
from hubserver.protocol import HubResource

API = f"/api/v1/models/any/{MODEL}"
WEIGHTS = FILES["weights.bin"]


SILENT_SECONDS = 0.5


def raw(serving: Hub, name: str = "weights.bin", silent_after: int | None = None) -> tuple[bytes, str]:
    """Every byte of an answer as it comes, and how it ended: closed, reset or silent.

    Silent is an answer of which nothing comes for SILENT_SECONDS after so many bytes of its body, or after no head for
    a negative number; None: for 10 s.
    """
    host, _, port = serving.url.removeprefix("http://").rpartition(":")
    target = f"{API}/repo?Revision=v1.0.0&FilePath={name}"
    content = b""
    with socket.create_connection((host, int(port)), timeout=10.0) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            while True:
                if silent_after is not None and received(content) >= silent_after:
                    client.settimeout(SILENT_SECONDS)
                part = client.recv(1 << 20)
                if not part:
                    break
                content += part
                if len(content) > 8 << 20:
                    return content, "endless"
        except TimeoutError:
            return content, "silent"
        except ConnectionResetError:
            return content, "reset"
    return content, "closed"


def body(content: bytes) -> bytes:
    """What follows the head."""
    return content.partition(b"\r\n\r\n")[2]


def received(content: bytes) -> int:
    """Bytes of the body that are there; -1 before the end of the head."""
    return len(body(content)) if b"\r\n\r\n" in content else -1


def test_a_status_comes_as_often_as_it_was_armed(serving: Hub) -> None:
    """The fault applies after `skip` requests, with its parameters."""
    serving.arm("revisions status=429 retry-after=7 skip=1 times=2")
    got = [serving.get(f"{API}/revisions") for _ in range(4)]
    assert [one.status for one in got] == [200, 429, 429, 200]
    assert got[1].headers["retry-after"] == "7"


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_status_lasts_if_nothing_limits_it(serving: Hub, status: int) -> None:
    """And it is in the hub's own envelope."""
    serving.arm(f"any status={status}")
    for target in (f"{API}/revisions", f"{API}/repo/files?Revision=v1.0.0", "/openapi/v1/models/any/shapes"):
        assert (status, False) == ((got := serving.get(target)).status, got.row["Success"])


def test_a_fault_hits_only_what_it_is_aimed_at(serving: Hub) -> None:
    """One kind of request, one pattern of names; the first that fits."""
    serving.arm("file:*.bin status=500", "file:empty status=503")
    assert [serving.file(name).status for name in ("weights.bin", "empty", "configuration.json")] == [500, 503, 200]
    assert serving.get(f"{API}/revisions").status == 200


def test_a_page_comes_instead(serving: Hub) -> None:
    """With status 200, as networks with a sign-in page do."""
    serving.arm("any html")
    for got in (serving.file("weights.bin"), serving.get(f"{API}/revisions")):
        assert (got.status, got.body) == (200, HTML)


@pytest.mark.parametrize(
    ("where", "location"),
    [
        ("http://10.0.0.1/x", "http://10.0.0.1/x"),
        ("http://other{target}", f"http://other{API}/repo?Revision=v1.0.0&FilePath=empty"),
        ("{target}", f"{API}/repo?Revision=v1.0.0&FilePath=empty"),
    ],
)
def test_a_redirect_leads_where_it_was_told(serving: Hub, where: str, location: str) -> None:
    """Elsewhere, elsewhere for the same, or in a circle."""
    serving.arm(f"file redirect={where}")
    assert (302, location) == ((got := serving.file("empty")).status, got.headers["location"])


@pytest.mark.parametrize(("line", "length"), [("stall", -1), ("stall after=0", 0), ("stall after=1000", 1000)])
def test_a_stall_says_nothing_more(serving: Hub, line: str, length: int) -> None:
    """Before the head, after it, or in the middle; and the connection stays."""
    serving.arm(f"file {line}")
    content, end = raw(serving, silent_after=length)
    assert (WEIGHTS[: max(0, length)], "silent") == (body(content), end)
    assert ("after" in line) == bool(content)


def test_a_drip_is_so_many_bytes_a_second(serving: Hub) -> None:
    """The whole would take days."""
    serving.arm("file drip after=10 rate=3")
    began = time.monotonic()
    content, end = raw(serving, silent_after=13)
    seconds = int(time.monotonic() - began)  # 0, unless the machine is busy
    assert (WEIGHTS.startswith(body(content)), end) == (True, "silent")
    assert len(body(content)) in range(13, 13 + 3 * seconds + 1, 3)
    assert b"Content-Length: 262144\r\n" in content


def test_a_reset_breaks_off_in_the_middle(serving: Hub) -> None:
    """The peer gets a reset."""
    serving.arm("file reset after=1000")
    content, end = raw(serving)
    assert (end, WEIGHTS.startswith(body(content))) == ("reset", True)


def test_a_cut_ends_in_order_before_the_announced_length(serving: Hub) -> None:
    """Which a careless client takes for the whole."""
    serving.arm("file cut after=1000")
    content, end = raw(serving)
    assert (WEIGHTS[:1000], "closed") == (body(content), end)
    assert b"Content-Length: 262144\r\n" in content


def test_an_endless_body_has_no_length_and_no_end(serving: Hub) -> None:
    """Only the client can end it."""
    serving.arm("file endless")
    content, end = raw(serving)
    assert end == "endless"
    assert b"Transfer-Encoding: chunked\r\n" in content
    assert b"Content-Length" not in content


def test_one_bit_is_turned_over(serving: Hub) -> None:
    """At that place of the file, also where only a part of it is asked for; nothing else changes."""
    serving.arm("file:weights.bin flip at=5000")
    wrong = WEIGHTS[:5000] + bytes([WEIGHTS[5000] ^ 1]) + WEIGHTS[5001:]
    assert wrong == serving.file("weights.bin").body
    assert wrong[4999:5002] == serving.file("weights.bin", range="bytes=4999-5001").body
    assert wrong[6000:] == serving.file("weights.bin", range="bytes=6000-").body


def test_one_byte_is_missing_and_the_length_agrees(serving: Hub) -> None:
    """Only the listing shows that a byte is missing."""
    serving.arm("file short")
    got = serving.file("weights.bin")
    assert (WEIGHTS[:-1], str(len(WEIGHTS) - 1)) == (got.body, got.headers["content-length"])


def listing(serving: Hub) -> dict[str, str | None]:
    """Paths of the listing with their hashes."""
    rows = serving.get(f"{API}/repo/files?Revision=v1.0.0").row["Data"]["Files"]
    return {row["Path"]: row.get("Sha256") for row in rows if row["Type"] == "blob"}


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a%00b", "a%0ab", "C:\\evil", "x" * 5000])
def test_a_name_is_smuggled_into_the_listing(serving: Hub, name: str) -> None:
    """And handed out when it is asked for, so that a careless client writes it."""
    serving.arm(f"files list={name}")
    (path,) = set(listing(serving)) - set(FILES)
    assert path == name.replace("%00", "\0").replace("%0a", "\n")
    assert ((got := serving.file(name)).status, got.body) == (200, SMUGGLED)


def test_the_listing_changes_from_one_time_to_the_next(serving: Hub) -> None:
    """A file more, a file less."""
    serving.arm("files list=more skip=1 times=1", "files unlist=empty skip=1")
    seen = [set(listing(serving)) for _ in range(3)]
    assert seen == [set(FILES), {*FILES, "more"}, {*FILES} - {"empty"}]


def test_hashes_can_be_left_out(serving: Hub) -> None:
    """As the real hub does for some repositories."""
    serving.arm("files unhashed")
    assert dict.fromkeys(FILES) == listing(serving)


def test_a_fault_stands_in_the_log(serving: Hub) -> None:
    """The log names the injected fault."""
    serving.arm("file:empty status=500")
    serving.file("empty")
    assert [line["altered"] for line in serving.answered()] == ["file:empty status=500"]


def test_a_hub_that_misbehaves_ends_at_once(tmp_path: Path) -> None:
    """Whatever it has on the way."""
    with hub(tmp_path) as made:
        made.publish("v1.0.0")
        made.arm("file stall after=0")
        host, _, port = made.url.removeprefix("http://").rpartition(":")
        client = http.client.HTTPConnection(host, int(port), timeout=10)
        client.request("GET", f"{API}/repo?Revision=v1.0.0&FilePath=weights.bin")
        answer = client.getresponse()
        made.server.stop()
        with contextlib.suppress(http.client.IncompleteRead, ConnectionResetError):
            assert answer.read() == b""
        client.close()
        answer.close()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("file", "says only where"),
        ("nowhere status=500", "is no place"),
        ("files:*.bin status=500", "is no place"),
        ("file explode", "is no fault"),
        ("file status", "needs a value"),
        ("file stall=3", "has no value"),
        ("file status=200", "none from 400"),
        ("file status=500 after=3", "is not a parameter of status"),
        ("file stall after=-3", "is not a parameter of stall"),
        ("file stall after=many", "is not a parameter of stall"),
    ],
)
def test_a_line_that_is_no_fault_is_told_what_is(line: str, says: str) -> None:
    """A fault that is misspelt must not become a test that always passes."""
    with pytest.raises(FaultUnknown, match=says):
        parse_faults([line])


def test_comments_and_empty_lines_are_passed_over() -> None:
    """So that a list of faults can be a file."""
    assert [fault.text for fault in parse_faults(["", "# nothing", "  any html  # a network"])] == ["any html"]


def test_faults_are_armed_over_http_where_that_is_allowed(tmp_path: Path) -> None:
    """Faults are listed, replaced and removed over HTTP; an invalid line changes nothing."""
    with hub(tmp_path, allows_faults=True) as made:
        made.publish("v1.0.0")
        assert made.get("/_faults", "PUT", content=b"revisions status=500\nfile html\n").status == 200
        assert made.get(f"{API}/revisions").status == 500
        assert made.get("/_faults", "PUT", content=b"file explode").status == 400
        assert made.get("/_faults").body == b"revisions status=500  # met 1\nfile html  # met 0\n"
        assert made.get("/_faults", "DELETE").body == b""
        assert made.get(f"{API}/revisions").status == 200


def test_faults_are_not_armed_over_http_elsewhere(serving: Hub) -> None:
    """A hub that serves others is no toy."""
    assert serving.get("/_faults", "PUT", content=b"any html").status == 405
    assert serving.get("/_faults").status == 404


def test_the_page_of_faults_has_all_of_them() -> None:
    """Each kind is a row of docs/hub.md, and each place is named there."""
    page = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1].split("=")[0] for line in page.splitlines() if line.startswith("| `")}
    assert set(HubFaultKind) == rows
    assert [kind for kind in HubResource if f"`{kind}`" not in page] == []
