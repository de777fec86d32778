"""Forms are kept in memory: how much of them all there may be, and how long one may take."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from console import page
from console.page import FormMemory, FormRefused
from tests.console.conftest import Browser
from tests.console.simulated_upstream import BAD_SOURCE, PNG, SimulatedUpstream

APPROVE = f"/act/approve?model=shapes&target={BAD_SOURCE}&revision=v1.3.0"


async def test_the_forms_of_all_callers_are_bounded(browser: Browser, upstream: SimulatedUpstream) -> None:
    """One more than fits is refused, and the next is served when the others are answered."""
    memory = browser.console.form_memory
    memory.take(page.MAX_HELD_BYTES - 1000)
    files = {"picture": ("p.png", PNG + bytes(2000))}
    refused = await browser.send("/try/shapes", files=files, texts="there is a dog")
    memory.give_back(page.MAX_HELD_BYTES - 1000)
    served = await browser.send("/try/shapes", files=files, texts="there is a dog")
    memory.take(page.MAX_HELD_BYTES)  # nothing is held
    assert (refused.status_code, served.status_code, len(upstream.asked)) == (503, 200, 1)


async def test_pictures_that_arrive_keep_no_operator_out(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Login and commands go on while pictures take all the memory that they may."""
    memory = browser.console.form_memory
    memory.take(page.MAX_HELD_BYTES)
    await browser.log_in()
    fields = {"model": "shapes", "target": BAD_SOURCE, "revision": "v1.3.0", "reason": "looked at the pictures"}
    answer = await browser.send("/act/approve", page=APPROVE, confirm="v1.3.0", **fields)
    memory.give_back(page.MAX_HELD_BYTES)
    assert (answer.status_code, len(upstream.asked)) == (303, 1)


async def test_a_form_that_never_ends_is_not_waited_for(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has arrived of it is forgotten."""
    monkeypatch.setattr(page, "FORM_SECONDS", 0.0)

    async def arrive() -> AsyncIterator[bytes]:
        yield b"csrf="
        await asyncio.Event().wait()

    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await browser.client.post("/try/shapes", content=arrive(), headers=headers)
    browser.console.form_memory.take(page.MAX_HELD_BYTES)
    assert answer.status_code == 408


def test_what_does_not_fit_takes_nothing() -> None:
    """A smaller form still fits."""
    memory = FormMemory(10)
    with pytest.raises(FormRefused):
        memory.take(11)
    memory.take(10)
    with pytest.raises(FormRefused):
        memory.take(1)
