"""The cycle that the sweep over system calls repeats: an update with an operator's commands."""

from pathlib import Path

import pytest

from dev.chaos.cycle import BAD, Cycle
from dev.harness.revisions import MODEL, publish_scripted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which v1.0.0 is committed."""
    run(tmp_path, "v1.0.0")
    return tmp_path


def run(folder: Path, revision: str) -> tuple[str, list[str], list[str]]:
    """Publish a revision and run one updater.

    Returns:
        The committed revision, the quarantined ones, and the names of the last update's events and of those without
        an update.
    """
    publish_scripted(folder / "hub", revision)
    cycle = Cycle(folder)
    try:
        record = cycle.run()
        ((_, update),) = cycle.journal.history(MODEL, 1, 0)
        events = [*cycle.journal.events(update.update.update_id), *cycle.journal.events("")]
    finally:
        cycle.journal.close()
    assert record.committed is not None
    return record.committed.revision, [row.revision for row in record.quarantine], [event.name for event in events]


def test_an_operator_pauses_resumes_and_approves(folder: Path) -> None:
    """Each process pauses and resumes updates; what replaces a committed revision is approved."""
    committed, quarantined, events = run(folder, "v1.1.0")

    assert {"updates_paused", "updates_resumed", "update_approved"} <= set(events)
    assert (committed, quarantined) == ("v1.1.0", [])


def test_an_approved_revision_that_fails_is_rolled_back(folder: Path) -> None:
    """An approval does not keep a revision that fails on live traffic."""
    committed, quarantined, _ = run(folder, f"v1.1.0+{BAD}")

    assert (committed, quarantined) == ("v1.0.0", [f"v1.1.0+{BAD}"])
