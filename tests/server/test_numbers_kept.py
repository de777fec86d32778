"""Metrics and counters of revisions are bounded: those unused for longest are dropped."""

import pytest
from prometheus_client import generate_latest

from inference.server import events
from inference.server.metrics import MAX_REVISIONS, EventMetrics
from inference.server.model.stats import StatsKey, StatsTable


def slot_changed(slot: str, revision: str) -> events.SlotChanged:
    """The event of a slot that holds a revision."""
    return events.SlotChanged("shapes", slot, "load_ended", "LOADED", "ACTIVE", revision, "", "cpu", 1)


def answered(revision: str) -> events.ItemEnded:
    """A revision has answered."""
    outcome = events.ItemOutcome.ANSWERED
    return events.ItemEnded("shapes", revision, "cpu", outcome, labels=("yes", "no"), seconds=0.003)


def count_answered(seen: EventMetrics, revision: str) -> float | None:
    """The items that a revision has answered."""
    labels = {"model": "shapes", "revision": revision, "device": "cpu", "outcome": "answered", "reason": ""}
    return seen.registry.get_sample_value("hotslot_items_total", labels)


def lines_of(seen: EventMetrics, revision: str) -> list[str]:
    """The metric series of one revision."""
    text = generate_latest(seen.registry).decode()
    return [line for line in text.splitlines() if f'revision="{revision}"' in line]


@pytest.mark.fault("S9")
def test_series_of_the_least_recently_loaded_revisions_are_removed() -> None:
    """After a hundred swaps the last 32 revisions and the answering one remain."""
    seen = EventMetrics()
    emit = events.emit_to_all([seen.handlers()])
    emit(slot_changed("a", "steady"))
    emit(answered("steady"))
    for number in range(100):
        revision = f"r{number}"
        emit(slot_changed("b", revision))
        emit(answered(revision))
        emit(events.DeviceCallEnded("shapes", revision, 1, 1, 0.01))
        emit(answered("steady"))

    assert count_answered(seen, "steady") == 101.0
    assert lines_of(seen, "r99")
    assert lines_of(seen, "r0") == []
    kept = {f"r{number}" for number in range(100) if lines_of(seen, f"r{number}")}
    assert len(kept) == MAX_REVISIONS - 1


def test_a_removed_revision_that_returns_starts_at_zero() -> None:
    """Its new counts go to a series that is exported."""
    seen = EventMetrics()
    emit = events.emit_to_all([seen.handlers()])
    emit(slot_changed("a", "old"))
    emit(answered("old"))
    for number in range(50):
        emit(slot_changed("a", f"r{number}"))
    emit(slot_changed("a", "old"))
    emit(answered("old"))
    assert count_answered(seen, "old") == 1.0


def test_the_active_revision_keeps_its_counters() -> None:
    """Forty other revisions do not evict it."""
    table = StatsTable(max_revisions=32)
    active = StatsKey("sha256:active", "cpu")
    for number in range(40):
        table.get(active).count_answer(0.01)
        table.get(StatsKey(f"sha256:{number}", "cpu")).count_answer(0.01)
    assert table.get(active).answered == 40
    assert len(table.rows()) == 32
