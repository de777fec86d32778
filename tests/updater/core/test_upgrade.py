"""State that an older build wrote (`fixtures/state-before`) is read, and written back in the present form."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.bundle import bundle_folder, read_bundle, read_committed
from inference.server.model.fallback_file import FILE_NAME, CpuFallbackFile
from updater.core.record import EndsIn, HeldFor, ModelRecord, Outcome, Stage, Trouble, UpdateKind
from updater.store.database import JournalUnreadable
from updater.store.journal import Journal
from updater.store.record_json import RECORD_SCHEMA

_STATE = Path(__file__).parents[1] / "fixtures" / "state-before"
_MODELS = ("idle", "held", "doubted", "observing", "returning", "troubled", "reverted", "lapsed")

pytestmark = pytest.mark.fault("D8")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A copy of the old state folder."""
    return shutil.copytree(_STATE, tmp_path / "state")


@pytest.fixture
def journal(state: Path) -> Iterator[Journal]:
    """The old journal, opened by this build."""
    opened = Journal(state / "journal.db")
    yield opened
    opened.close()


def load(journal: Journal, model: str) -> ModelRecord:
    """A record that is there."""
    record = journal.load(model)
    assert record is not None
    return record


def test_operators_decisions_are_kept(journal: Journal) -> None:
    """The pause with its reason, the minimal version, the quarantine and what was let out of it."""
    record = load(journal, "idle")
    assert (record.paused, record.pause_reason) == (True, "a busy day")
    assert record.min_version == "1.1.0"
    assert [row.revision for row in record.quarantine] == ["1.3.0"]
    assert [digest.split("-")[0] for digest in record.unquarantined] == ["source 1.2.0"]
    assert (record.watch.polls, record.watch.last_polled_at) == (16, datetime(2026, 6, 1, 0, 3, 45, 620000, UTC))


def test_updates_under_way_and_held_are_taken_up_where_they_stood(journal: Journal) -> None:
    """Stage, kind, the server's incarnation, how a rollback shall end, and why."""
    held = load(journal, "held").under_way
    assert held.ending is not None
    assert (held.ending.ends_in, held.ending.held_for) == (EndsIn.HELD, HeldFor.SERVER_CRASHED)
    assert (held.reason, held.server_incarnation, held.crashes) == ("SERVER_CRASHED", "life 3", 3)

    observing = load(journal, "observing")
    assert (observing.stage, observing.under_way.kind) == (Stage.OBSERVING, UpdateKind.REQUESTED)
    assert observing.under_way.server_incarnation == "life 1"
    assert (observing.paused, observing.pause_reason) == (True, "by hand only")

    lapsed = load(journal, "lapsed")
    assert lapsed.under_way.ending is not None
    assert (lapsed.stage, lapsed.under_way.ending.ends_in) == (Stage.ROLLING_BACK, EndsIn.RETRY)
    assert lapsed.under_way.reason == "LEASE_EXPIRED"


def test_a_failback_a_revert_and_trouble_are_known_again(journal: Journal) -> None:
    """The CPU fallback is not taken for a new one."""
    away = load(journal, "returning")
    assert away.under_way.kind is UpdateKind.FAILBACK
    assert away.cpu_fallback is not None
    assert (away.cpu_fallback.device, away.cpu_fallback.fallback_device) == ("cuda:0", "cpu")
    assert load(journal, "reverted").under_way.kind is UpdateKind.REVERT
    assert load(journal, "troubled").trouble == Trouble("life 2", restarts=0)


def test_history_is_told_in_the_present_words(journal: Journal) -> None:
    """Updates with their reasons, events with their names, measured numbers."""
    rows = {past.update.update_id: past for _, past in journal.history("", 100, 0)}
    assert {past.model for past in rows.values()} == set(_MODELS)
    assert (rows["idle-update-244"].update.reason, rows["idle-update-244"].outcome) == ("PAUSED", Outcome.ABANDONED)
    assert [row.name for row in journal.events("idle-update-244")][-3:] == [
        "updates_paused",
        "rollback_began",
        "update_abandoned",
    ]
    measured = {row.name for evidence in journal.evidence("doubted-update-73") for row in evidence.measured}
    assert measured >= {"accuracy", "min_accuracy"}


def test_what_is_written_back_has_the_present_form(state: Path) -> None:
    """And reads as the same."""
    path = state / "journal.db"
    with closing(Journal(path)) as journal:
        before = {model: load(journal, model) for model in _MODELS}
        for record in before.values():
            journal.write(record, ())
    with closing(sqlite3.connect(path)) as connection:
        rows = [json.loads(text) for (text,) in connection.execute("SELECT row FROM records")]
    with closing(Journal(path)) as journal:
        assert {model: load(journal, model) for model in _MODELS} == before
    assert {row["schema_version"] for row in rows} == {RECORD_SCHEMA}
    assert not any({"floor", "on_hold", "released"} & set(row) for row in rows)


def test_an_event_that_waits_for_a_webhook_still_waits(journal: Journal) -> None:
    """As it was queued."""
    queued = journal.outbox.next("operators")
    assert queued is not None
    assert (queued.event, json.loads(queued.body)["model"]) == ("update_held", "held")


def test_a_newer_record_is_refused(state: Path) -> None:
    """It is left as it is."""
    path = state / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE records SET row = json_set(row, '$.schema_version', ?)", (RECORD_SCHEMA + 1,))
        connection.commit()
    with pytest.raises(JournalUnreadable, match=r"newer hotslot \(schema 3,"):
        Journal(path)


def test_the_servers_files_are_read(state: Path) -> None:
    """The committed pointer, the bundle that it names, and the device that the server stays away from."""
    complaints: list[str] = []
    committed = read_committed(state)["returning"]
    fallback = CpuFallbackFile(state / FILE_NAME, complaints.append).get("returning")

    assert read_bundle(bundle_folder(state, committed.bundle_digest)).revision == "1.0.0"
    assert fallback is not None
    assert fallback.device == "cuda:0"
    assert complaints == []
