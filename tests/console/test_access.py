"""Who may see and do what."""

import io
import json
import tracemalloc
import zipfile

import pytest

from console.access import AccessRules, is_known_host, is_same_origin
from console.golden import MAX_EXPORT_BYTES, MAX_IMPORT_ITEMS
from console.page import MAX_HELD_BYTES
from console.sessions import Session, SessionSigner
from console.upstream import CallFailed
from hotslot.updates.v1 import updates_pb2 as pb
from tests.console.conftest import Browser
from tests.console.simulated_upstream import BAD_SOURCE, PNG, SimulatedUpstream

APPROVE = "/act/approve?model=shapes&target=" + BAD_SOURCE + "&revision=v1.3.0"


async def test_an_operator_approves_by_the_revisions_name_with_a_reason(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """The updater hears who and why."""
    await browser.log_in()
    fields = {"model": "shapes", "target": BAD_SOURCE, "revision": "v1.3.0", "reason": "looked at the pictures"}
    answer = await browser.send("/act/approve", page=APPROVE, confirm="v1.3.0", **fields)
    sent = pb.ApproveRequest(model="shapes", source_digest=BAD_SOURCE)
    sent.operator.name, sent.operator.reason = "wang", "looked at the pictures"
    assert (answer.status_code, upstream.asked) == (303, [sent])


@pytest.mark.parametrize(
    ("confirm", "reason", "told"),
    [("v1.3", "seen", "not the revision"), ("v1.3.0", "  ", "A reason is needed")],
)
async def test_a_command_without_confirmation_or_reason_is_not_sent(
    browser: Browser, upstream: SimulatedUpstream, confirm: str, reason: str, told: str
) -> None:
    """The form comes back and says what is missing."""
    await browser.log_in()
    fields = {"model": "shapes", "target": BAD_SOURCE, "revision": "v1.3.0", "reason": reason, "confirm": confirm}
    answer = await browser.send("/act/approve", page=APPROVE, **fields)
    assert (answer.status_code, told in answer.text, upstream.asked) == (400, True, [])


async def test_a_refused_command_is_told_in_the_updaters_words(browser: Browser, upstream: SimulatedUpstream) -> None:
    """And the form keeps the reason."""
    upstream.failure = CallFailed("no update of this content is held", reason="NOT_HELD")
    await browser.log_in()
    answer = await browser.send("/act/pause", page="/act/pause?model=shapes", model="shapes", reason="release freeze")
    assert ("no update of this content is held" in answer.text, "release freeze" in answer.text) == (True, True)


async def test_nobody_acts_without_a_login(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Neither by the form nor past it; and no page shows the buttons."""
    await browser.see("/act/pause?model=shapes", status=403)
    answer = await browser.send("/act/pause", page="/login", model="shapes", reason="x")
    page = await browser.see("/")
    assert (answer.status_code, "/act/" in page, upstream.asked) == (403, False, [])


@pytest.mark.parametrize("may_operate", [False])
async def test_a_console_that_only_shows_refuses_operators_too(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Who is logged in may look."""
    await browser.log_in()
    answer = await browser.send("/act/pause", page="/login", model="shapes", reason="x")
    assert (answer.status_code, upstream.asked) == (403, [])


async def test_a_wrong_token_is_refused(browser: Browser) -> None:
    """In words, and the token is not repeated."""
    answer = await browser.send("/login", token="hotslot_" + "wrong")
    assert (answer.status_code, "hotslot_wrong" in answer.text) == (401, False)


async def test_a_form_of_another_session_or_site_is_refused(browser: Browser, upstream: SimulatedUpstream) -> None:
    """By its missing token, and by its origin."""
    await browser.log_in()
    foreign = await browser.client.post("/act/pause", data={"reason": "x"}, headers={"origin": "https://evil.example"})
    bare = await browser.client.post("/act/pause", data={"reason": "x", "csrf": "0" * 64})
    assert (foreign.status_code, bare.status_code, upstream.asked) == (403, 403, [])


async def test_another_host_name_is_refused(browser: Browser) -> None:
    """DNS rebinding: a page of another site that points its own name at this machine."""
    answer = await browser.client.get("/", headers={"host": "evil.example:50080"})
    assert answer.status_code == 421


@pytest.mark.parametrize("rules", [AccessRules(needs_login=True)])
async def test_beyond_this_machine_even_reading_needs_a_login(browser: Browser) -> None:
    """Files of the pages stay open, so that the login looks as it should."""
    before = await browser.client.get("/")
    await browser.see("/static/console.css")
    await browser.log_in()
    await browser.see("/")
    assert (before.status_code, before.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("rules", [AccessRules(base_path="/ops", public_hosts=("ops.example",))])
async def test_a_sub_path_works_whether_the_proxy_keeps_it_or_not(browser: Browser) -> None:
    """All links carry it."""
    kept = await browser.see("/ops/updates", host="ops.example")
    removed = await browser.see("/updates", host="ops.example")
    assert ('href="/ops/static/console.css"' in kept, 'href="/ops/"' in removed) == (True, True)


async def test_every_page_has_a_strict_policy(browser: Browser) -> None:
    """No inline script or style, nothing from outside, no frame, nothing kept in a cache."""
    headers = (await browser.client.get("/")).headers
    policy = headers["content-security-policy"]
    assert ("'unsafe" in policy, policy.startswith("default-src 'none'"), headers["cache-control"]) == (
        False,
        True,
        "no-store",
    )


async def test_no_page_has_inline_scripts_styles_or_foreign_addresses(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """The policy would block them."""
    upstream.hold()
    await browser.log_in()
    paths = ("/", "/try/shapes", "/try/addresses", "/updates", "/updates/u-1", "/golden/shapes", "/login", APPROVE)
    pages = [await browser.see(path) for path in paths]
    bad = ("style=", "onclick=", "<style", "http://", "https://", "<script>")
    found = [(path, sign) for path, page in zip(paths, pages, strict=True) for sign in bad if sign in page]
    assert [row for row in found if row[1] != "http://"] == []


async def test_a_picture_over_the_servers_limit_is_refused_before_it_is_read(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """By its length, told with the limit."""
    answer = await browser.send("/try/shapes", files={"picture": ("p.png", PNG + bytes(4 << 20))}, texts="x")
    assert (answer.status_code, upstream.asked) == (413, [])


async def test_an_item_is_added_to_the_golden_set(browser: Browser, upstream: SimulatedUpstream) -> None:
    """With its picture, the right answer, and who says so."""
    await browser.log_in()
    fields = {"texts": "there is a dog", "expected": "no", "name": "dog-1", "reason": "it is a fox"}
    await browser.send("/golden/shapes/add", page="/try/shapes", files={"picture": ("p.png", PNG)}, **fields)
    sent = upstream.asked[0]
    assert (sent.item.item, list(sent.item.expected), sent.picture, sent.operator.name) == (
        "dog-1",
        ["no"],
        PNG,
        "wang",
    )


async def test_an_exported_set_can_be_imported(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Item by item, through the updater."""
    await browser.log_in()
    exported = (await browser.client.get("/golden/shapes/export")).content
    answer = await browser.send("/golden/shapes/import", page="/golden/shapes", files={"archive": ("g.zip", exported)})
    names = [request.item.item for request in upstream.asked]
    assert (answer.headers["location"], names) == ("/golden/shapes?added=2&known=0", ["street-1", "street-2"])


async def test_an_archive_that_names_one_large_picture_often_is_refused(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """A kilobyte of it would unpack to gigabytes."""
    await browser.log_in()
    lines = [
        json.dumps({"item": f"i{number}", "image": "a.png", "statements": ["x"], "expected": ["yes"]})
        for number in range(300)
    ]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("golden.jsonl", "\n".join(lines) + "\n")
        archive.writestr("a.png", bytes(1 << 20))
    files = {"archive": ("g.zip", made.getvalue())}
    answer = await browser.send("/golden/shapes/import", page="/golden/shapes", files=files)
    damaged = made.getvalue()[:60] + b"damage" + made.getvalue()[66:]
    other = await browser.send("/golden/shapes/import", page="/golden/shapes", files={"archive": ("g.zip", damaged)})
    assert (answer.status_code, other.status_code, upstream.asked) == (413, 400, [])


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
async def test_the_sizes_that_an_archive_declares_are_not_believed(
    browser: Browser, upstream: SimulatedUpstream, compression: int
) -> None:
    """An entry of "ten bytes" that unpacks to megabytes takes no memory for these."""
    await browser.log_in()
    made, size = io.BytesIO(), 32 << 20
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.writestr("golden.jsonl", bytes(size))
    declared = made.getvalue().replace(size.to_bytes(4, "little"), (10).to_bytes(4, "little"))
    files = {"archive": ("g.zip", declared)}
    await browser.see("/golden/shapes")
    tracemalloc.start()
    try:
        answer = await browser.send("/golden/shapes/import", page="/golden/shapes", files=files)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, peak < size // 4, upstream.asked) == (400, True, [])


async def test_an_archive_of_too_many_entries_is_not_opened(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Each takes memory, whatever it is."""
    await browser.log_in()
    exported = io.BytesIO((await browser.client.get("/golden/shapes/export")).content)
    with zipfile.ZipFile(exported, "a") as archive:
        for number in range(2 * MAX_IMPORT_ITEMS):
            archive.writestr(f"{number}", b"")
    files = {"archive": ("g.zip", exported.getvalue())}
    answer = await browser.send("/golden/shapes/import", page="/golden/shapes", files=files)
    assert (answer.status_code, upstream.asked) == (413, [])


async def test_what_archives_unpack_to_counts_as_memory_of_forms(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Small archives that arrive at the same time do not unpack to gigabytes."""
    await browser.log_in()
    files = {"archive": ("g.zip", (await browser.client.get("/golden/shapes/export")).content)}
    browser.console.form_memory.take(MAX_HELD_BYTES - MAX_EXPORT_BYTES)
    refused = await browser.send("/golden/shapes/import", page="/golden/shapes", files=files)
    browser.console.form_memory.give_back(MAX_HELD_BYTES - MAX_EXPORT_BYTES)
    served = await browser.send("/golden/shapes/import", page="/golden/shapes", files=files)
    browser.console.form_memory.take(MAX_HELD_BYTES)  # nothing is held
    assert (refused.status_code, served.status_code, len(upstream.asked)) == (503, 303, 2)


def test_a_session_cannot_be_made_or_prolonged() -> None:
    """Not by changing its cookie, with another key, or after its end."""
    signer = SessionSigner(b"key")
    cookie = signer.write(Session("nonce", "wang", 100.0))
    changed = cookie[:-1] + ("0" if cookie[-1] != "0" else "1")
    reads = (signer.read(cookie, 99.0), signer.read(changed, 99.0), SessionSigner(b"other").read(cookie, 99.0))
    assert (reads, signer.read(cookie, 100.0), signer.read("", 0.0), signer.read("é.x", 0.0)) == (
        (Session("nonce", "wang", 100.0), None, None),
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("localhost:50080", True),
        ("[::1]:50080", True),
        ("127.0.0.1", True),
        ("ops.example", True),
        ("ops.example.evil.example", False),
        ("", False),
        ("localhost.evil.example", False),
    ],
)
def test_only_our_own_host_names_are_known(host: str, is_known: bool) -> None:  # noqa: FBT001  of a table
    """Exactly, not by their beginning."""
    assert is_known_host(host, (), ("ops.example",)) is is_known


@pytest.mark.parametrize(
    ("origin", "is_same"),
    [
        ("", True),
        ("http://localhost:50080", True),
        ("null", False),
        ("http://localhost:50081", False),
        ("http://[", False),
    ],
)
def test_a_foreign_origin_is_told(origin: str, is_same: bool) -> None:  # noqa: FBT001  of a table
    """Browsers send it with every POST."""
    assert is_same_origin(origin, "localhost:50080", ()) is is_same
