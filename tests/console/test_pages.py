"""The pages show what server and updater say, in their own words, and nothing that was sent is taken for HTML."""

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from console.golden import MAX_CHECKS, MAX_WAITING_CHECKS
from console.words import CHINESE, choose_language
from hotslot.updates.v1 import updates_pb2 as pb
from tests.console.conftest import Browser
from tests.console.simulated_upstream import ADDRESS, NEW, PNG, SimulatedUpstream, make_difference

CONSOLE = Path(__file__).resolve().parents[2] / "console"


async def test_the_overview_shows_both_slots_of_each_model(browser: Browser) -> None:
    """A role, a revision and a device each; the free slot says so."""
    page = await browser.see("/")
    slots = re.findall(r"Slot (\w) <span class=\"badge\">(\w+)", page)
    assert slots == [("a", "ACTIVE"), ("b", "FREE"), ("a", "ACTIVE"), ("b", "FREE")]


async def test_the_labels_of_each_revision_are_shown(browser: Browser) -> None:
    """As shares, the most frequent first."""
    page = await browser.see("/")
    assert "yes 75.0 % · no 25.0 %" in page


async def test_an_absent_server_is_told_and_found_again(browser: Browser, upstream: SimulatedUpstream) -> None:
    """The page stays up without a server, and shows it when it is back."""
    upstream.is_away = True
    away = await browser.see("/")
    upstream.is_away = False
    back = await browser.see("/")
    assert ("no server answers" in away, "no server answers" in back, "v1.0.0" in back) == (True, False, True)


async def test_a_page_that_was_loaded_without_a_server_gets_the_models_later(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """As an event of the models as a whole; a page that has them gets only what has changed."""
    upstream.is_away = True
    without = re.search(r"live\?shown=(\w+)", await browser.see("/"))
    upstream.is_away = False
    page = await browser.see("/")
    with_models = re.search(r"live\?shown=(\w+)", page)
    assert without is not None
    assert with_models is not None
    assert ('sse-swap="models"' in page, without[1] == with_models[1]) == (True, False)


async def test_a_picture_is_tried_on_the_active_slot_and_on_the_other(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """Both answers stand beside each other; each names its revision."""
    upstream.candidate = True
    answer = await browser.send("/try/shapes", files={"picture": ("p.png", PNG)}, texts="there is a dog\n\nit rains")
    revisions = re.findall(r"<h2>(v[\d.]+) <span class=\"badge\">(\w[\w ]*)<", answer.text)
    statements = [list(request.statements) for request in upstream.asked if hasattr(request, "statements")]
    assert (revisions, statements) == (
        [("v1.0.0", "answers now"), ("v1.1.0", "CANDIDATE")],
        [["there is a dog", "it rains"]],
    )


async def test_a_golden_item_is_tried_with_one_click(browser: Browser, upstream: SimulatedUpstream) -> None:
    """The gallery's picture goes to the server though the browser sends no file."""
    await browser.send("/try/shapes", page="/try/shapes?item=street-1", item="street-1", texts="there is a dog")
    assert upstream.asked[0].image.content == PNG


async def test_a_missing_picture_is_refused_in_the_servers_words(browser: Browser) -> None:
    """The reason is the API's."""
    answer = await browser.send("/try/shapes", texts="there is a dog")
    assert ("image.content is missing" in answer.text, "IMAGE_MISSING" in answer.text) == (True, True)


async def test_an_address_is_shown_in_its_parts(browser: Browser) -> None:
    """What lies between two parts is shown too."""
    answer = await browser.send("/try/addresses", texts=ADDRESS)
    parts = re.findall(r"<mark class=\"tone-\d\">([^<]+)<small>(\w+)</small></mark>", answer.text)
    assert (parts, "文一西路969号</p>" in answer.text) == ([("浙江省", "prov"), ("杭州市", "city")], True)


async def test_texts_are_never_taken_for_html(browser: Browser) -> None:
    """Of callers, of golden sets, and in the address of a page."""
    tried = await browser.send("/try/addresses", texts="<script>alert(1)</script>")
    golden = await browser.see("/golden/shapes")
    missing = await browser.see("/try/%3Cscript%3Ealert(2)", status=404)
    assert [page.count("<script>alert") + page.count("<b>a cat") for page in (tried.text, golden, missing)] == [0, 0, 0]


async def test_an_update_shows_its_evidence_with_pictures(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Where it stopped, what was measured, and the pictures that it answers otherwise."""
    upstream.hold()
    page = await browser.see("/updates/u-1")
    stages = re.findall(r'<li class="(\w+)"[^>]*><b>(\w+)</b>', page)
    pictures = re.findall(r"<img[^>]*picture\?item=([\w-]+)", page)
    assert (stages[:4], pictures, "✗ fails" in page) == (
        [("done", "STAGING"), ("done", "VERIFYING"), ("stopped", "GATING"), ("next", "ACTIVATING")],
        ["street-1", "street-2"],
        True,
    )


async def test_kept_calls_are_shown_with_both_answers_and_their_pictures(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """Only texts whose answers differ; what a caller sent is text, never a part of the page."""
    upstream.hold()
    page = await browser.see("/updates/u-1")
    (source,) = re.findall(r'src="([^"]*/kept[^"]*)"', page)
    picture = await browser.client.get(source)
    assert (picture.headers["content-type"], picture.headers["cache-control"]) == ("image/png", "no-store")
    assert "a &lt;b&gt;dog&lt;/b&gt;" in page
    assert "a bird" not in page


async def test_a_measure_says_its_unit_and_which_direction_is_better(
    browser: Browser, upstream: SimulatedUpstream
) -> None:
    """In plain words."""
    upstream.hold()
    page = await browser.see("/updates/u-1")
    rows = re.findall(r"<tr><td>([^<]+)<br><small[^>]*>([^<]+)</small></td>(.*?)</tr>", page, re.DOTALL)
    shown = [(name, what, re.findall(r'<td class="n">([^<]+)', numbers)) for name, what, numbers in rows]
    assert shown == [
        ("same answers as the active model", "higher is better, %", ["70", "100", "95"]),
        ("time to answer, p95", "lower is better, ms", ["50", "20", "100"]),
    ]


async def test_a_table_shows_which_answers_became_which(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Three labels by three."""
    upstream.hold()
    page = await browser.see("/updates/u-1")
    table = page[page.index('<table class="matrix">') :]
    rows = re.findall(r'<th scope="row">(\w+)</th>(.*?)</tr>', table[: table.index("</table>")])
    assert [(label, re.findall(r'<td class="n[^"]*">([^<]+)', cells)) for label, cells in rows] == [
        ("yes", ["5", "1", "1"]),
        ("no", ["·", "·", "·"]),
        ("maybe", ["·", "1", "·"]),
    ]


async def test_all_differing_items_are_paged(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Beyond the first page, under the same filter; a number stands beside each filter."""
    upstream.hold()
    upstream.differing += [
        make_difference(f"more-{number}", "yes", "yes", "no", pb.DIFFERENCE_KIND_NOW_WRONG) for number in range(60)
    ]
    seen, path = [], "/updates/u-1?show=wrong"
    while path:
        page = await browser.see(path)
        seen += re.findall(r"text of ([\w-]+)", page)
        more = re.search(r'href="(\?show=wrong&amp;from=\d+)#', page)
        path = "" if more is None else "/updates/u-1" + more[1].replace("&amp;", "&")
    assert (len(seen), len(set(seen)), "now wrong (61)" in page) == (61, 61, True)


async def test_failures_and_refusals_are_shown_by_revision(browser: Browser, upstream: SimulatedUpstream) -> None:
    """With their reasons."""
    await browser.see("/")
    upstream.answered, upstream.failed, upstream.refused = 40, {"NOT_FINITE": 2}, {"QUEUE_FULL": 5, "QUOTA_EXCEEDED": 1}
    upstream.active = NEW  # a swap is sampled at once
    page = await browser.see("/")
    assert re.findall(r"<small>(\w+ \d+)</small>", page) == ["NOT_FINITE 2", "QUEUE_FULL 5", "QUOTA_EXCEEDED 1"]


@pytest.mark.parametrize(("show", "items"), [("wrong", ["street-1"]), ("right", ["street-2"]), ("changed", ["gone"])])
async def test_differences_are_filtered(
    browser: Browser, upstream: SimulatedUpstream, show: str, items: list[str]
) -> None:
    """By whether the candidate is now wrong, now right, or only other."""
    upstream.hold()
    page = await browser.see(f"/updates/u-1?show={show}")
    assert re.findall(r"text of ([\w-]+)", page) == items


async def test_an_unknown_update_is_a_page_with_the_reason(browser: Browser) -> None:
    """Not a crash."""
    assert "UPDATE_UNKNOWN" in await browser.see("/updates/nothing", status=404)


async def test_a_golden_set_says_what_it_cannot_see(browser: Browser) -> None:
    """With two expectations anything may pass; with more, three by their number."""
    assert "<b>100.0 %</b>" in await browser.see("/golden/shapes")


async def find_check(browser: Browser) -> str:
    """The address that begins a check, as its page has it."""
    found = re.search(r'sse-connect="([^"]+)"', await browser.see("/golden/shapes/check"))
    assert found is not None
    return found[1]


async def test_a_page_elsewhere_cannot_begin_a_check(browser: Browser, upstream: SimulatedUpstream) -> None:
    """It does not know the token of the browser's session; the live model is asked nothing."""
    before = len(upstream.asked)
    own = await find_check(browser)
    for address in ("/golden/shapes/check/run", f"{own[:-1]}{'0' if own[-1] != '0' else '1'}"):
        assert (await browser.client.get(address)).status_code == 403
    browser.client.cookies.clear()
    assert (await browser.client.get(own)).status_code == 403
    assert upstream.asked[before:] == []


async def test_only_a_few_checks_run_at_once(browser: Browser, upstream: SimulatedUpstream) -> None:
    """A further one begins when another has ended."""
    own = await find_check(browser)
    upstream.answers.clear()
    running = [asyncio.create_task(browser.client.get(own)) for _ in range(MAX_CHECKS)]
    async with asyncio.timeout(10):
        for _ in running:
            await upstream.predictions.acquire()
    further = asyncio.create_task(browser.client.get(own))
    for _ in range(200):
        await asyncio.sleep(0)
    asks_nothing = upstream.predictions.locked() and not further.done()
    upstream.answers.set()
    ended = [(await one).status_code for one in (*running, further)]
    assert (asks_nothing, ended) == (True, [200] * (MAX_CHECKS + 1))


async def test_only_some_checks_wait(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Each holds a connection that is not closed for others; a further one is refused, and may come again."""
    own = await find_check(browser)
    upstream.answers.clear()
    begun = [asyncio.create_task(browser.client.get(own)) for _ in range(MAX_CHECKS + MAX_WAITING_CHECKS)]
    async with asyncio.timeout(10):
        for _ in range(MAX_CHECKS):
            await upstream.predictions.acquire()
        for _ in range(200):
            await asyncio.sleep(0)
        refused = await browser.client.get(own)
    upstream.answers.set()
    ended = {(await one).status_code for one in begun}
    again = await browser.client.get(own)
    assert (refused.status_code, ended, again.status_code) == (503, {200}, 200)


async def test_a_check_asks_every_item_of_the_live_model(browser: Browser) -> None:
    """One of the two is answered as expected."""
    found = await browser.client.get(await find_check(browser))
    assert ("<b>1</b> / 2" in found.text, found.text.rstrip().endswith("data: end")) == (True, True)


async def test_a_golden_set_is_exported_with_its_pictures(browser: Browser) -> None:
    """As an archive that import reads."""
    found = await browser.client.get("/golden/shapes/export")
    assert (found.headers["content-type"], found.content[:2]) == ("application/zip", b"PK")


async def test_pages_speak_chinese(browser: Browser) -> None:
    """Asked for by the browser, or by a click that is remembered."""
    accepted = (await browser.client.get("/", headers={"accept-language": "zh-CN,zh;q=0.9"})).text
    await browser.see("/?lang=zh")
    kept = (await browser.client.get("/updates", headers={"accept-language": "en"})).text
    assert ("槽位" in accepted, "历次更新" in kept) == (True, True)


@pytest.mark.parametrize(
    ("asked", "kept", "accepted", "language"),
    [
        ("", "", "fr, zh-TW;q=0.5, en;q=0.4", "zh"),
        ("en", "zh", "zh", "en"),
        ("xx", "zh", "en", "zh"),
        ("", "", "de;q=wrong", "en"),
    ],
)
def test_a_language_is_chosen(asked: str, kept: str, accepted: str, language: str) -> None:
    """A click, else an earlier click, else the browser's wish."""
    assert choose_language(asked, kept, accepted) == language


def test_every_sentence_of_the_pages_has_a_translation() -> None:
    """And no translation is left over."""
    sources = [path.read_text("utf-8") for path in CONSOLE.rglob("*.html")]
    found = {sentence for text in sources for sentence in re.findall(r"_\([\"']([^\"]+?)[\"']\)", text)}
    assert found - set(CHINESE) == set()


def test_scripts_of_others_are_unchanged() -> None:
    """As the licence file says."""
    listed = re.findall(r"`([\w.]+\.js)` \|.*\| ([0-9a-f]{64}) \|", (CONSOLE / "static" / "LICENSES.md").read_text())
    seen = [(name, hashlib.sha256((CONSOLE / "static" / name).read_bytes()).hexdigest()) for name, _ in listed]
    assert (seen, len(seen)) == (listed, 2)
