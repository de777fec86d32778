"""What server and updater say has a translation for every code, and the pages show it with the original."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from console import measures, reasons, words
from console.upstream import CallFailed
from dev.scripts.error_reasons import ADVICE
from tests.console.conftest import Browser
from tests.console.simulated_upstream import SimulatedUpstream
from updater.core import checks
from updater.core.record import HeldFor
from updater.service import convert

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"[A-Z]{3,}(_[A-Z0-9]+)*")
# What the code calls with a reason, by position or by name.
RAISED_BY = {
    *("EffectFailure", "GateJudgement", "_judge_worse", "TrialJudgement", "Refusal", "ConversionRefused"),
    *("UnsupportedRevision", "ConfigProblem", "GoldenBroken", "LoadRefused", "Failure", "PictureRefused", "PostFailed"),
    *("make_check_failure", "transient", "permanent", "denied", "not_ready", "inconclusive", "refuse", "retry"),
    *("abandon", "end", "_changed", "_apply_lost", "count_failure", "Check"),
}


def list_raised(tree: ast.AST) -> Iterator[str]:
    """The reasons that a module gives to errors, refusals, holds and ends of updates."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values = [row.value for row in node.keywords if row.arg in ("reason", "failure", "problem")]
            values += [*node.args, *(row.value for row in node.keywords)] if name in RAISED_BY else []
            yield from (text for value in values for text in list_constants(value))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if getattr(target, "id", getattr(target, "attr", "")) in ("reason", "default_reason"):
                yield from list_constants(node.value)


def list_constants(node: ast.AST) -> Iterator[str]:
    """The codes in an expression, through conditions and tuples."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
        yield node.value
    elif isinstance(node, ast.IfExp | ast.Tuple | ast.BoolOp):
        for part in ast.iter_child_nodes(node):
            yield from list_constants(part)


def test_every_reason_has_a_translation() -> None:
    """Those of callers' errors, of refusals and failures anywhere in the code, of holds, and of limits of a trial."""
    raised = set(ADVICE) | {held_for.value for held_for in HeldFor}
    for room in ("common", "inference", "updater", "console"):
        for path in (ROOT / room).rglob("*.py"):
            if path.parts[-2:] != ("model", "shadow.py"):  # reasons of its counters, which no page shows
                raised.update(list_raised(ast.parse(path.read_text(encoding="utf-8"))))
    raised |= {"NOT_FINITE", "RUNNER_DIED", "BURST", "SERVER_STOPPED", "ERROR_SHARE", "RUNNER_DEATHS"}
    raised |= {"FAILED_WITH_PROBES", "COST_SECONDS_A_ROW", "LATENCY_P95_SECONDS"}
    assert len(raised) > 150
    assert sorted(raised - set(reasons.REASONS)) == []


def test_every_advice_has_a_translation() -> None:
    """Of each hold, and of each code in the updater's service; no translation is left over."""
    codes = {held_for.value for held_for in convert.HELD_ADVICE}
    for path in (ROOT / "updater" / "service").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        codes.update(re.findall(r'Advice\(\s*"([A-Z_]+)"', text), re.findall(r'advice_code="([A-Z_]+)"', text))
    codes |= {"REPUBLISHED", "WATCH", "FAULT", "STARTING"}
    assert sorted(codes ^ set(reasons.ADVICE)) == []


def test_every_event_has_a_translation() -> None:
    """Those that docs/webhooks.md lists."""
    listed = re.findall(r"^\| `([a-z]+_[a-z_]+)` \| ", (ROOT / "docs" / "webhooks.md").read_text("utf-8"), re.MULTILINE)
    events = set(listed) - {"schema_version"}
    assert len(events) > 40
    assert sorted(events - set(reasons.EVENTS)) == []


def test_every_check_has_a_translation() -> None:
    """Of those that a sealed bundle records."""
    shown = {check.title: reasons.Explainer("zh").check(check.title) for check in checks.CHECKS}
    kept = [title for title, chinese in shown.items() if title == chinese]
    assert (sorted(kept), len(shown)) == (["6 SHA-256"], len(reasons.CHECKS))


def test_every_measure_has_a_plain_name_and_a_direction() -> None:
    """Each that the updater measures, with words that have translations."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "updater" / "stages").glob("*.py"))]
    measured = {name for text in texts for name in re.findall(r'Measured\(\s*"(\w+)"', text)}
    measured |= {"changed_answers", "cost_seconds_a_row", "latency_p95_seconds"}  # named by constants
    shown = {text for row in measures.MEASURES.values() for text in (row.label, row.better, row.group)}
    assert (sorted(measured ^ set(measures.MEASURES)), sorted(shown - set(words.CHINESE))) == ([], [])


def test_every_problem_of_the_console_itself_has_a_translation() -> None:
    """A form that cannot be used, and an absent server."""
    said: set[str] = set()
    for path in (ROOT / "console").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("FormRefused", "show_problem"):
                said |= {arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and type(arg.value) is str}
    assert len(said) > 10
    assert sorted(said - set(words.CHINESE)) == []


@pytest.fixture
async def chinese(browser: Browser) -> Browser:
    """A browser that has chosen Chinese."""
    await browser.see("/?lang=zh")
    return browser


async def test_a_held_update_is_told_in_chinese(chinese: Browser, upstream: SimulatedUpstream) -> None:
    """Reason and advice by their codes, with the original to open."""
    upstream.hold()
    page = await chinese.see("/updates/u-1")
    assert reasons.REASONS["AGREEMENT"] in page
    assert reasons.ADVICE["AGREEMENT"] in page
    assert '<span lang="en">compare, then approve</span>' in page


async def test_an_error_of_a_call_is_told_in_chinese(chinese: Browser) -> None:
    """By its reason, with the server's sentence beside it."""
    answer = await chinese.send("/try/shapes", texts="there is a dog")
    found = re.search(r'role="alert">([^<]+)<details.*?<span lang="en">([^<]+)</span>', answer.text, re.DOTALL)
    assert found is not None
    assert (found[1].strip(), found[2]) == (reasons.REASONS["IMAGE_MISSING"], "image.content is missing")


async def test_an_absent_server_is_told_in_chinese(chinese: Browser, upstream: SimulatedUpstream) -> None:
    """The console's own sentences have no reason."""
    upstream.is_away = True
    sentence = words.CHINESE["no server answers; `hotslot serve` starts one"]
    assert sentence in await chinese.see("/")


async def test_a_code_that_this_build_does_not_know_keeps_the_original(
    chinese: Browser, upstream: SimulatedUpstream
) -> None:
    """A newer updater may have more."""
    upstream.failure = CallFailed("the moon is full", reason="MOON_FULL")
    await chinese.log_in()
    answer = await chinese.send("/act/pause", page="/act/pause?model=shapes", model="shapes", reason="maintenance")
    assert ("the moon is full" in answer.text, "MOON_FULL" in answer.text) == (True, True)


async def test_english_pages_say_each_sentence_once(browser: Browser, upstream: SimulatedUpstream) -> None:
    """Without a translation to open."""
    upstream.hold()
    page = await browser.see("/updates/u-1")
    assert (page.count("compare, then approve"), "<details" in page) == (1, False)
