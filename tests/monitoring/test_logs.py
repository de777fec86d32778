"""A log is told as a story: `stack.log` is of the real stack, with a kill, a bad revision and a restart."""

import json
import re
from pathlib import Path

from cli.monitoring.log_events import MEANINGS, Reading, read_events
from cli.monitoring.log_story import Episode, find_cause, tell_story
from cli.settings import PROJECT_FOLDER
from tests.cli.conftest import Hotslot, _isolate, hotslot  # noqa: F401  fixtures

LOG = Path(__file__).with_name("stack.log")
ROOMS = ("common", "inference", "updater", "hotslot_watchdog", "hubserver", "console", "cli")


def episodes() -> list[Episode]:
    """Of the real log."""
    return tell_story(LOG.read_text(encoding="utf-8").splitlines()).episodes


def line(name: str, second: float, **fields: object) -> str:
    """One made up."""
    at = f"2026-01-02T03:04:{second:09.6f}Z"
    return json.dumps({"at": at, "level": "info", "process": "server", "event": name, **fields})


def test_an_update_is_one_episode_with_its_steps_and_its_end() -> None:
    """From the look at the hub to the commit."""
    (update,) = [one for one in episodes() if "v1.1.0 committed" in one.title]
    assert not update.is_bad
    assert 0.5 < update.seconds < 10
    steps = [detail.partition(": ")[2] for detail in update.details]
    assert steps[:3] == ["fetched", "verified and sealed", "loaded"]
    assert steps[-1] == "trial committed, slot b with v1.1.0"


def test_a_rollback_says_what_the_trial_failed_and_where_the_evidence_is() -> None:
    """And counts the requests that were handed over."""
    (update,) = [one for one in episodes() if "v1.2.0" in one.title]
    assert update.is_bad
    assert "8 of 23 requests failed" in update.title
    assert "what it failed was handed over: NOT_FINITE × 9" in update.details
    assert update.action.startswith("`hotslot updates show 2026")


def test_a_death_says_why_and_until_when_the_model_was_away() -> None:
    """A killed runner."""
    (death,) = [one for one in episodes() if "SIGKILL" in one.title]
    assert 7 < death.seconds < 8
    assert death.details[-1].endswith("it serves again")
    assert "for memory" in death.action


def test_a_program_that_ended_is_told_with_the_time_until_it_was_back() -> None:
    """Here the updater."""
    (gone,) = [one for one in episodes() if "the updater ended unexpectedly" in one.title]
    assert 3 < gone.seconds < 5


def test_a_slow_call_is_explained_by_what_happened_meanwhile() -> None:
    """Not by its queue, which is only where the time went."""
    story = tell_story(LOG.read_text(encoding="utf-8").splitlines())
    slowest = story.calls.slowest()[0]
    assert slowest.number("seconds") > 7
    assert "SIGKILL" in find_cause(story, slowest)
    quiet = tell_story(
        [line("call_ended", 5, rpc_service="x.EntailmentService", grpc_code="OK", seconds=2.0, queued_seconds=1.9)]
    )
    assert "too much load" in find_cause(quiet, quiet.calls.slowest()[0])


def test_failed_calls_are_told_as_bursts() -> None:
    """One for each reason, until it pauses."""
    rows = [
        line("call_ended", at, rpc_service="x.EntailmentService", grpc_code=code, reason=reason, seconds=0.1)
        for at, code, reason in (
            (1, "ResourceExhausted", "QUEUE_FULL"),
            (2, "Internal", "RUNNER_DIED"),
            (3, "ResourceExhausted", "QUEUE_FULL"),
            (20, "ResourceExhausted", "QUEUE_FULL"),
        )
    ]
    assert [one.title for one in tell_story(rows).episodes] == [
        "2 calls ended with ResourceExhausted QUEUE_FULL",
        "1 calls ended with Internal RUNNER_DIED",
        "1 calls ended with ResourceExhausted QUEUE_FULL",
    ]


def test_overload_lasts_until_it_ends_and_repetitions_are_counted() -> None:
    """Nothing is told a hundred times."""
    rows = [line("overload_begun", 1, model="m"), line("overload_ended", 9, model="m")]
    rows += [line("webhook_failed", second, hook="ops", reason="TIMEOUT") for second in range(10, 20)]
    first, second = tell_story(rows).episodes
    assert (first.seconds, second.times) == (8.0, 10)


def test_lines_of_other_programs_are_counted_and_prefixes_are_skipped() -> None:
    """A container runtime puts a time before each line."""
    reading = Reading()
    rows = ["Traceback (most recent call last):", "{broken", "2026-01-02 stdout F " + line("server_stopped", 1), "[1]"]
    assert [event.name for event in read_events(rows, reading)] == ["server_stopped"]
    assert (reading.lines, reading.others) == (4, 3)


def test_the_command_tells_the_story(hotslot: Hotslot) -> None:  # noqa: F811
    """As text and as JSON; a file without events is an error."""
    ended = hotslot("logs", "explain", str(LOG))
    assert ended.code == 0
    assert "update to v1.2.0 rolled back" in ended.out
    row = json.loads(hotslot("logs", "explain", str(LOG), "--json").out)
    assert row["episodes"][0]["action"]
    Path("empty.log").write_text("nothing\n", encoding="utf-8")
    assert hotslot("logs", "explain", "empty.log").code == 1


def test_every_event_that_is_explained_is_one_that_the_code_logs() -> None:
    """No explanation of what is never said; some names are put together from a reason or a file."""
    texts = [
        path.read_text(encoding="utf-8")
        for room in ROOMS
        for path in (PROJECT_FOLDER / room).rglob("*.py")
        if path.name != "log_events.py"
    ]
    made = {name: name.upper() for name in ("journal_lost", "journal_unreadable")}
    made |= dict.fromkeys(("certificate_refused", "tokens_refused"), "{self.name}_refused")
    code = "\n".join(texts)
    assert sorted(name for name in MEANINGS if made.get(name, f'"{name}"') not in code) == []


def test_the_page_leads_from_real_lines_to_causes() -> None:
    """docs/how-to/read-the-logs.md: each of its lines is one that the story understands."""
    page = (PROJECT_FOLDER / "docs/how-to/read-the-logs.md").read_text(encoding="utf-8")
    lines = re.findall(r"```json\n(.*)\n```", page)
    reading = Reading()
    assert len(list(read_events(lines, reading))) == len(lines)
    assert reading.others == 0
    assert len(lines) >= 15
