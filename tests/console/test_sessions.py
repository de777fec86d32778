"""A session lasts no longer than the rights that it was begun with."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from common.tokens import Tokens, make_entry, make_token
from console.access import COOKIE, AccessRules
from console.sessions import SESSION_SECONDS, EndedSessions, Session, Sessions
from tests.common.clock import SimClock
from tests.console.conftest import Browser, TokensFile
from tests.console.simulated_upstream import SimulatedUpstream


@pytest.mark.parametrize("owner", [(), ("li",)])
async def test_a_revoked_token_acts_no_more(
    browser: Browser, upstream: SimulatedUpstream, tokens_file: TokensFile, owner: tuple[str, ...]
) -> None:
    """Its session is over at the next request, also if the token now is another operator's."""
    await browser.log_in()
    await browser.send("/act/resume", page="/act/resume?model=shapes", model="shapes", reason="x")
    csrf = browser.csrf_of(await browser.see("/act/pause?model=shapes"))
    tokens_file.give(*owner)
    answer = await browser.client.post("/act/pause", data={"csrf": csrf, "model": "shapes", "reason": "x"})
    page = await browser.see("/")
    methods = [type(request).__name__ for request in upstream.asked]
    assert (answer.status_code, "wang" in page, "/act/" in page, methods) == (403, False, False, ["ResumeRequest"])


@pytest.mark.parametrize("rules", [AccessRules(needs_login=True)])
async def test_a_revoked_token_reads_no_more_where_reading_needs_a_login(
    browser: Browser, tokens_file: TokensFile
) -> None:
    """Each page leads to the login."""
    await browser.log_in()
    await browser.see("/")
    tokens_file.give()
    answer = await browser.client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


async def test_a_cookie_is_worth_nothing_after_its_logout(browser: Browser) -> None:
    """Wherever it was copied to; a login after another one ends that one, too."""
    copies = []
    for path, fields in (("/logout", {}), ("/login", {"token": browser.token})):
        await browser.log_in()
        copies.append(browser.client.cookies[COOKIE])
        await browser.send(path, page="/login", **fields)
    browser.client.cookies.clear()
    pages = [await browser.see("/", cookie=f"{COOKIE}={copy}") for copy in copies]
    assert ["wang" in page for page in pages] == [False, False]


async def test_a_session_ends_after_twelve_hours(browser: Browser, clock: SimClock) -> None:
    """However busy it is."""
    await browser.log_in()
    clock.advance(SESSION_SECONDS - 1)
    before = "wang" in await browser.see("/")
    clock.advance(1)
    assert (before, "wang" in await browser.see("/")) == (True, False)


async def test_an_open_page_ends_with_its_session(browser: Browser, tokens_file: TokensFile) -> None:
    """With the first event after it; the browser connects again, with the rights that it has then."""
    await browser.log_in()
    live = browser.console.live
    watching = asyncio.create_task(browser.client.get("/live"))
    while not live.watchers:  # noqa: ASYNC110  nothing else says that the page watches
        await asyncio.sleep(0)
    await live.refresh()
    tokens_file.give()
    await live.refresh()
    answer = await asyncio.wait_for(watching, 5.0)
    assert ("event: health" in answer.text, live.watchers) == (True, 0)


async def test_a_check_that_runs_ends_with_its_session(
    browser: Browser, upstream: SimulatedUpstream, tokens_file: TokensFile
) -> None:
    """It asks the model nothing more."""
    await browser.log_in()
    csrf = browser.csrf_of(await browser.see("/golden/shapes"))
    upstream.answers.clear()
    checking = asyncio.create_task(browser.client.get(f"/golden/shapes/check/run?csrf={csrf}"))
    await asyncio.wait_for(upstream.predictions.acquire(), 5.0)
    tokens_file.give()
    upstream.answers.set()
    answer = await asyncio.wait_for(checking, 5.0)
    assert (answer.text.endswith("event: end\ndata: end\n\n"), len(upstream.asked)) == (True, 1)


async def test_a_command_whose_form_arrives_after_the_revocation_is_refused(
    browser: Browser, upstream: SimulatedUpstream, tokens_file: TokensFile
) -> None:
    """The request began with a valid session."""
    await browser.log_in()
    csrf = browser.csrf_of(await browser.see("/act/pause?model=shapes"))
    form = f"csrf={csrf}&model=shapes&reason=x".encode()

    async def arrive() -> AsyncIterator[bytes]:
        yield form[:5]
        tokens_file.give()
        yield form[5:]

    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await browser.client.post("/act/pause", content=arrive(), headers=headers)
    assert (answer.status_code, upstream.asked) == (403, [])


async def test_an_import_ends_with_its_session(
    browser: Browser, upstream: SimulatedUpstream, tokens_file: TokensFile
) -> None:
    """What was added before stays."""
    await browser.log_in()
    exported = (await browser.client.get("/golden/shapes/export")).content
    upstream.on_command = tokens_file.give
    answer = await browser.send("/golden/shapes/import", page="/golden/shapes", files={"archive": ("g.zip", exported)})
    assert (answer.status_code, len(upstream.asked)) == (403, 1)


async def test_nothing_large_is_read_of_one_who_may_not_act(browser: Browser) -> None:
    """A set of pictures is refused before its first byte."""
    csrf = browser.csrf_of(await browser.see("/login"))
    read = []

    async def arrive() -> AsyncIterator[bytes]:
        read.append("all")
        yield f"csrf={csrf}".encode()

    headers = {"content-type": "application/x-www-form-urlencoded"}
    answers = [
        await browser.client.post(f"/golden/shapes/{what}", content=arrive(), headers=headers)
        for what in ("import", "add")
    ]
    assert ([answer.status_code for answer in answers], read) == ([403, 403], [])


def test_ended_sessions_are_never_forgotten() -> None:
    """A full list takes all sessions that began before its oldest one for ended; later ones stay valid."""
    ended = EndedSessions(limit=2)
    sessions = [Session(str(number), "wang", ends_at=100.0 + number) for number in range(4)]
    for session in sessions[1:]:
        ended.add(session, now=0.0)
    other = replace(sessions[3], nonce="other")
    assert [ended.has(session) for session in (*sessions, other)] == [True, True, True, True, False]


def test_only_operators_sessions_take_place_in_the_list_of_ended_ones() -> None:
    """Whoever may load a page can have as many sessions as he likes, and end them."""
    entry = make_entry("wang", make_token(), "")
    sessions = Sessions(SimClock(), lambda: Tokens({entry.digest: entry}), EndedSessions(limit=1))
    kept = sessions.begin(entry)
    for _ in range(3):
        sessions.end(sessions.begin())
    before = sessions.is_valid(kept)
    sessions.end(kept)
    assert (before, sessions.is_valid(kept)) == (True, False)
