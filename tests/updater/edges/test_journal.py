"""The journal: durable or unchanged, readable or left alone."""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import InputRefused
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.record import (
    Differing,
    Event,
    Evidence,
    Installed,
    Measured,
    ModelRecord,
    Outcome,
    Stage,
    Update,
    UpdateKind,
)
from updater.service.history import HistoryApi
from updater.store import database
from updater.store import journal as journal_module
from updater.store.database import JournalNotWritten, JournalUnreadable
from updater.store.journal import Journal

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UPDATE = Update("20260102-030405-abc", UpdateKind.RELEASE, "v1.1.0", NOW)
RECORD = ModelRecord("shapes", Stage.STAGING, UPDATE, committed=Installed("v1.0.0", "sha256:s", "sha256:b"))


def event(name: str, stage: Stage = Stage.STAGING, outcome: Outcome | None = None) -> Event:
    """Something that happened."""
    return Event(NOW, "shapes", stage, name, "a sentence", UPDATE, outcome)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """A new one."""
    opened = Journal(path)
    yield opened
    opened.close()


def test_a_record_is_read_as_it_was_written(journal: Journal) -> None:
    """Every field is unchanged."""
    assert journal.load("shapes") is None
    journal.write(RECORD, ())
    assert journal.load("shapes") == RECORD


@pytest.mark.fault("B4")
def test_a_record_survives_a_restart(journal: Journal, path: Path) -> None:
    """The next process reads it."""
    journal.write(RECORD, [event("update_started")])
    journal.close()
    again = Journal(path)
    assert again.load("shapes") == RECORD
    assert [row.name for row in again.events(UPDATE.update_id)] == ["update_started"]
    again.close()


def test_the_history_has_the_last_state_of_each_update(journal: Journal) -> None:
    """One row for each update, newest first, in pages."""
    for number in range(5):
        update = replace(UPDATE, update_id=f"u-{number}")
        begun = replace(event("update_started"), update=update)
        ended = replace(event("update_committed", Stage.IDLE, Outcome.COMMITTED), update=update)
        journal.write(RECORD, [begun, ended])
    first = journal.history("shapes", 3, 0)
    assert [past.update.update_id for _, past in first] == ["u-4", "u-3", "u-2"]
    assert {past.outcome for _, past in first} == {Outcome.COMMITTED}
    rest = journal.history("", 3, first[-1][0])
    assert [past.update.update_id for _, past in rest] == ["u-1", "u-0"]


def test_evidence_is_kept_by_stage(journal: Journal) -> None:
    """Measurements of the gate and of the trial are both kept."""
    gate = Evidence((Measured("accuracy", 0.9, 0.95, 0.94, passed=False),))
    journal.write(RECORD, [replace(event("candidate_refused", Stage.GATING), evidence=gate)])
    trial = Evidence((Measured("error_share", 0.0, None, 0.01, passed=True),))
    journal.write(RECORD, [replace(event("trial_kept", Stage.OBSERVING), evidence=trial)])
    assert [gate, trial] == journal.evidence(UPDATE.update_id)


def test_all_differing_items_are_kept_and_those_of_older_updates_are_shortened(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal of years does not keep the long lists of every refused revision."""
    monkeypatch.setattr(journal_module, "MAX_LONG_EVIDENCE", 2)
    rows = tuple(Differing(str(number), "?", "yes", "yes", "no") for number in range(700))
    measured = (Measured("accuracy", 0.9, 0.95, 0.94, passed=False),)
    for number in range(4):
        update = replace(UPDATE, update_id=f"u-{number}")
        gate = replace(event("update_refused"), update=update, evidence=Evidence(measured, rows))
        journal.write(RECORD, [gate])
    found = [journal.evidence(f"u-{number}") for number in range(4)]
    assert [[len(row.differing) for row in rows] for rows in found] == [[20], [20], [700], [700]]
    assert found[3][0] == Evidence(measured, rows)


def test_differing_items_are_listed_in_pages_by_kind(journal: Journal) -> None:
    """As operators ask for them; an update's own message has the first 20."""
    rows = tuple(
        Differing(str(number), "?", "yes", "yes" if number % 3 else "maybe", "no" if number % 2 else "yes")
        for number in range(90)
    )
    journal.write(RECORD, [replace(event("update_refused"), evidence=Evidence(differing=rows))])
    api = HistoryApi(lambda: ("shapes",), lambda: journal, lambda _model: None, lambda _digest: None)
    wanted = pb.ListDifferingItemsRequest(update_id=UPDATE.update_id, kind=pb.DIFFERENCE_KIND_NOW_WRONG, page_size=20)
    first = api.list_differing(wanted, 1.0)
    wanted.page_token = first.next_page_token
    page = api.list_differing(wanted, 1.0)
    whole = api.get_update(pb.GetUpdateRequest(update_id=UPDATE.update_id), 1.0)
    names = [row.item for row in (*first.items, *page.items)]
    assert names == [str(number) for number in range(90) if number % 2 and number % 3]
    assert (len(first.items), page.next_page_token) == (20, "")
    assert {row.kind: row.count for row in page.counts} == {
        pb.DIFFERENCE_KIND_NOW_WRONG: 30,
        pb.DIFFERENCE_KIND_NOW_RIGHT: 45,
        pb.DIFFERENCE_KIND_CHANGED: 15,
    }
    assert len(whole.differing) == 20
    with pytest.raises(InputRefused, match="page_size must be 1 to 500"):
        api.list_differing(pb.ListDifferingItemsRequest(update_id=UPDATE.update_id, page_size=501), 1.0)


def test_events_are_never_changed(journal: Journal, path: Path) -> None:
    """The audit trail only grows."""
    journal.write(RECORD, [event("update_started")])
    journal.close()
    with pytest.raises(sqlite3.IntegrityError, match="never changed"):
        sqlite3.connect(path).execute("UPDATE events SET message = 'another'")


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "empty"), (b"x" * 8192, "not a database"), (b"SQLite format 3\0" + b"\xff" * 8000, "journal")],
)
def test_a_damaged_journal_is_reported_and_not_changed(path: Path, content: bytes, why: str) -> None:
    """So that it can be examined."""
    path.write_bytes(content)
    with pytest.raises(JournalUnreadable, match=why):
        Journal(path)
    assert content == path.read_bytes()


@pytest.mark.fault("D6")
def test_a_truncated_journal_is_reported(journal: Journal, path: Path) -> None:
    """It is neither read nor replaced."""
    for number in range(200):
        journal.write(RECORD, [event(f"event_{number}")])
    journal.close()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(JournalUnreadable):
        Journal(path).load("shapes")


@pytest.mark.fault("D6")
def test_a_newer_schema_is_reported(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older build does not try to read it."""
    journal.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={database.JOURNAL_SCHEMA + 1}")
    with pytest.raises(JournalUnreadable, match="start the newer"):
        Journal(path)


@pytest.mark.fault("D6")
def test_an_unknown_field_of_a_record_is_reported(journal: Journal, path: Path) -> None:
    """Updates stop rather than ignore it."""
    journal.write(RECORD, ())
    journal.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET row = json_set(row, '$.surprise', 1)")
    opened = Journal(path)
    with pytest.raises(JournalUnreadable, match="does not know"):
        opened.load("shapes")
    opened.close()


@pytest.mark.fault("D1")
def test_a_full_disk_changes_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails as a whole, and a later one succeeds."""
    journal.write(RECORD, ())
    too_large = [replace(event("noise"), message="x" * (1 << 20)) for _ in range(4)]
    database_ = journal._database  # noqa: SLF001  the fault is set where the disk would set it
    pages = database_.rows("PRAGMA page_count")[0][0]
    database_.rows(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalNotWritten, match="full"):
        journal.write(replace(RECORD, stage=Stage.VERIFYING), too_large)
    assert journal.load("shapes") == RECORD
    assert journal.events(UPDATE.update_id) == []
    journal.write(replace(RECORD, stage=Stage.VERIFYING), [event("revision_staged")])
    assert Stage.VERIFYING is (journal.load("shapes") or RECORD).stage


def test_a_journal_that_grows_takes_no_more_memory(journal: Journal) -> None:
    """SQLite keeps at most 256 KiB of its pages."""
    assert journal._database.rows("PRAGMA cache_size") == [(-256,)]  # noqa: SLF001  only the open connection tells


@pytest.mark.fault("D3")
def test_a_journal_that_cannot_be_created_is_retried(tmp_path: Path) -> None:
    """A missing or read-only folder is not a damaged journal."""
    with pytest.raises(JournalNotWritten):
        Journal(tmp_path / "gone" / "journal.db")


def test_an_incompletely_created_journal_is_created_again(path: Path) -> None:
    """A crash leaves only a temporary file, which the next start deletes."""
    path.with_name(".journal.db.new").write_bytes(b"half")
    Journal(path).close()
    left = {entry.name for entry in path.parent.iterdir() if not entry.name.endswith("-journal")}
    assert left == {"journal.db", "journal.witness"}


def test_audit_trail_history_and_evidence_are_bounded(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten: a journal of years is no larger than one of months."""
    for name, most in (("MAX_EVENTS", 30), ("MAX_UPDATES", 20), ("MAX_EVIDENCE", 5)):
        monkeypatch.setattr(journal_module, name, most)
    evidence = Evidence((Measured("accuracy", 0.9, 0.95, 0.94, passed=False),))
    for number in range(100):
        update = replace(UPDATE, update_id=f"u-{number}")
        begun = replace(event("update_started"), update=update, evidence=evidence, message="x" * 9000)
        journal.write(RECORD, [begun])
    ids = [past.update.update_id for _, past in journal.history("", 1000, 0)]
    assert ids[0] == "u-99"
    assert len(ids) == 20
    assert [bool(journal.events(name)) for name in ("u-60", "u-99")] == [False, True]
    assert sum(bool(journal.evidence(f"u-{number}")) for number in range(100)) == 5
    assert len(journal.events("u-99")[0].message) == 4000
