"""The durable records, the audit trail, the history of updates and their evidence; all models in one file."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from common.json_load import load_json
from updater.core.record import Event, Evidence, ModelRecord, Outcome, Stage, Update
from updater.core.rules import Rules
from updater.core.witness import JournalIdentity, Witness, protect
from updater.store.database import Database, JournalNotWritten, JournalUnreadable, read_copy
from updater.store.outbox import Outbox, Subscribers
from updater.store.record_json import RecordUnreadable, current_event_name, from_json, read, to_json
from updater.store.witness import WitnessFile

MAX_EVENTS = 50_000  # the oldest are forgotten beyond this, with updates that have no event any more
MAX_UPDATES = 5000  # of all models; the oldest are forgotten beyond this
MAX_EVIDENCE = 500  # updates whose measurements are kept
MAX_LONG_EVIDENCE = 50  # updates of which more than the first differing items are kept
SHORT_DIFFERING = 20  # differing items of older updates
_MORE = "+more"  # after the stage: the kind of the row with the other differing items
MAX_MESSAGE_CHARS = 4000  # of an event
_PRUNE_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One line of the audit trail."""

    at: datetime
    stage: Stage
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class PastUpdate:
    """An update in its state at its last event."""

    model: str
    update: Update
    stage: Stage
    outcome: Outcome | None = None  # None while it is under way
    ended_at: datetime | None = None


class Journal:
    """The journal. From any thread; a failed write changes nothing."""

    def __init__(
        self,
        path: Path,
        rules: Rules | None = None,
        subscribers: Subscribers | None = None,
        report: Callable[[str, str], None] = lambda _name, _message: None,
        *,
        is_restored: bool = False,
    ) -> None:
        """Open the journal and its witness; create them at a first start.

        Args:
            path: of the file; its folder exists.
            rules: used for the safe state of breakers that cannot be read.
            subscribers: receivers for which events are queued; default: none.
            report: called with the name of a trouble with the witness, and a sentence.
            is_restored: make it a journal of its own, also where an updater has committed something before.

        Raises:
            JournalUnreadable: the file exists and cannot be trusted.
            JournalLost: it is gone, older than its witness, or another one.
            JournalNotWritten: it, or its witness, cannot be created or read now.
        """
        self._rules = rules
        self._report = report
        self._writing = threading.Lock()  # of the journal and its witness
        on_renewed = partial(report, "witness_renewed")
        self._witness = WitnessFile(path, on_renewed, is_restored=is_restored)
        self._database = Database(path)
        try:
            if is_restored:
                with self._database.change() as connection:
                    connection.execute("UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'journal_id'")
            self._witness.open(self._read_identity(), self._read_records)
        except BaseException:
            self._database.close()
            raise
        self.outbox = Outbox(self._database, subscribers or Subscribers())

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def copy_to(self, target: Path) -> None:
        """Write a whole copy of the journal.

        Raises:
            JournalNotWritten: it could not be written.
        """
        self._database.copy_to(target)

    def check(self) -> None:
        """Check that the files are still there; a witness that is gone is written again.

        Raises:
            JournalLost: the journal was deleted or replaced.
            OSError: that cannot be found out, or the witness cannot be written, now.
        """
        self._database.check_file()
        with self._writing:
            self._witness.check()

    def load(self, model: str) -> ModelRecord | None:
        """The record that was written last.

        Raises:
            JournalUnreadable: it cannot be read, is malformed or of a newer schema.
        """
        rows = self._database.rows("SELECT row FROM records WHERE model = ?", (model,))
        if not rows:
            return None
        with _trusted():
            return from_json(_object(rows[0][0]), self._rules)

    def write(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Write record and events in one transaction; after the call returns they survive a power cut.

        Raises:
            JournalNotWritten: an OSError; nothing was written.
        """
        with self._writing:
            self._witness.bring_up()  # so that it never misses more than one write
            witness, state = self._witness.witness, protect(record)
            is_protected = state != witness.state_of(record.model)
            witness = witness.after_write(state) if is_protected else witness
            dropped = self._write_rows(record, events, witness.identity if is_protected else None)
            if is_protected:
                self._follow(witness)
        self.outbox.notify(dropped)

    def _follow(self, witness: Witness) -> None:
        """Write the witness after the journal; if that fails, the next write does it first."""
        self._witness.follow(witness)
        try:
            self._witness.bring_up()
        except JournalNotWritten as error:
            self._report("witness_not_written", str(error))

    def _write_rows(
        self, record: ModelRecord, events: Sequence[Event], identity: JournalIdentity | None
    ) -> Mapping[str, int]:
        """Write in one transaction; returns what `Outbox.put` returns. With an identity: its count of writes too."""
        with self._database.change() as connection:
            dropped = self.outbox.put(connection, events)  # in the same transaction, so that no event is lost
            if identity is not None:  # the number itself: a write that failed may have reached the disk
                count = str(identity.protected_writes)
                connection.execute("UPDATE meta SET value = ? WHERE key = 'protected_writes'", (count,))
            connection.execute(
                "INSERT INTO records VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET row = excluded.row",
                (record.model, _line(to_json(record))),
            )
            for event in events:
                update_id = event.update.update_id if event.update is not None else ""
                connection.execute(
                    "INSERT INTO events (at, model, update_id, stage, name, message) VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        event.at.isoformat(),
                        event.model,
                        update_id,
                        event.stage.value,
                        event.name,
                        event.message[:MAX_MESSAGE_CHARS],
                    ),
                )
                if event.update is not None:
                    connection.execute(
                        "INSERT INTO updates (update_id, model, row) VALUES (?, ?, ?) "
                        "ON CONFLICT (update_id) DO UPDATE SET row = excluded.row",
                        (update_id, event.model, _line(to_json(_past_update(event, event.update)))),
                    )
                if event.evidence is not None:
                    _write_evidence(connection, update_id, event.stage, event.evidence)
            _prune(connection, is_evidence_new=any(event.evidence is not None for event in events))
        return dropped

    def history(self, model: str, limit: int, before: int) -> list[tuple[int, PastUpdate]]:
        """Past updates, newest first, each with its number.

        Args:
            model: name; empty for all.
            limit: most updates.
            before: only those with a smaller number; 0 for the newest.
        """
        rows = self._database.rows(
            "SELECT seq, row FROM updates WHERE (? = '' OR model = ?) AND (? = 0 OR seq < ?) ORDER BY seq DESC LIMIT ?",
            (model, model, before, before, limit),
        )
        with _trusted():
            return [(int(str(seq)), read(PastUpdate, _object(row))) for seq, row in rows]

    def update(self, update_id: str) -> PastUpdate | None:
        """One update."""
        rows = self._database.rows("SELECT row FROM updates WHERE update_id = ?", (update_id,))
        with _trusted():
            return read(PastUpdate, _object(rows[0][0])) if rows else None

    def events(self, update_id: str) -> list[PastEvent]:
        """The events of one update, oldest first."""
        rows = self._database.rows(
            "SELECT at, stage, name, message FROM events WHERE update_id = ? ORDER BY seq", (update_id,)
        )
        return [
            PastEvent(datetime.fromisoformat(str(at)), Stage(str(stage)), current_event_name(str(name)), str(message))
            for at, stage, name, message in rows
        ]

    def alarms(self, model: str, limit: int) -> list[tuple[str, PastEvent]]:
        """The last alarms that belong to no update, newest first, each with its model.

        Args:
            model: name; empty for all.
            limit: most alarms.
        """
        rows = self._database.rows(
            "SELECT model, at, stage, name, message FROM events WHERE name = 'revision_republished' "
            "AND (? = '' OR model = ?) ORDER BY seq DESC LIMIT ?",
            (model, model, limit),
        )
        return [
            (str(name), PastEvent(datetime.fromisoformat(str(at)), Stage(str(stage)), str(event), str(message)))
            for name, at, stage, event, message in rows
        ]

    def evidence(self, update_id: str) -> list[Evidence]:
        """The measurements of one update, by stage."""
        rows = self._database.rows("SELECT kind, row FROM evidence WHERE update_id = ? ORDER BY rowid", (update_id,))
        found: dict[str, Evidence] = {}
        with _trusted():
            for kind, row in rows:
                stage, evidence = str(kind).removesuffix(_MORE), read(Evidence, _object(row))
                before = found.get(stage)
                whole = () if before is None else before.differing
                found[stage] = evidence if before is None else replace(before, differing=whole + evidence.differing)
        return list(found.values())

    def _read_identity(self) -> JournalIdentity:
        rows = self._database.rows("SELECT key, value FROM meta WHERE key IN ('journal_id', 'protected_writes')")
        found = {str(key): str(value) for key, value in rows}
        try:
            return JournalIdentity(found["journal_id"], int(found["protected_writes"]))
        except (KeyError, ValueError) as error:
            raise JournalUnreadable("the journal has no identity") from error

    def _read_records(self) -> list[ModelRecord]:
        with _trusted():
            return [from_json(_object(row), self._rules) for (row,) in self._database.rows("SELECT row FROM records")]


def read_records(path: Path) -> tuple[ModelRecord, ...]:
    """All records of a copy of a journal, by name; it is not changed.

    Raises:
        JournalUnreadable: it cannot be trusted.
        OSError: it cannot be read.
    """
    with _trusted():
        rows = read_copy(path, "SELECT row FROM records ORDER BY model")
        return tuple(from_json(_object(row)) for (row,) in rows)


def _prune(connection: sqlite3.Connection, *, is_evidence_new: bool) -> None:
    """Delete what is beyond the bounds of the audit trail, the history and the evidence; a little at each write."""
    for table, most in (("events", MAX_EVENTS), ("updates", MAX_UPDATES)):
        connection.execute(
            f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ? AND seq IN "  # noqa: S608  our names
            f"(SELECT seq FROM {table} ORDER BY seq LIMIT ?)",
            (most, _PRUNE_AT_ONCE),
        )
    if is_evidence_new:
        connection.execute(
            "DELETE FROM evidence WHERE update_id NOT IN (SELECT update_id FROM updates ORDER BY seq DESC LIMIT ?)",
            (MAX_EVIDENCE,),
        )
        connection.execute(
            "DELETE FROM evidence WHERE kind LIKE ? AND update_id NOT IN"
            " (SELECT update_id FROM updates ORDER BY seq DESC LIMIT ?)",
            (f"%{_MORE}", MAX_LONG_EVIDENCE),
        )


def _write_evidence(connection: sqlite3.Connection, update_id: str, stage: Stage, evidence: Evidence) -> None:
    """Replace the evidence of a stage; most of a long list of differing items is a row of its own, forgotten sooner."""
    first, others = evidence.differing[:SHORT_DIFFERING], evidence.differing[SHORT_DIFFERING:]
    connection.execute("DELETE FROM evidence WHERE update_id = ? AND kind = ?", (update_id, stage.value + _MORE))
    rows = [(stage.value, replace(evidence, differing=first))]
    if others:
        rows.append((stage.value + _MORE, Evidence(differing=others)))
    connection.executemany(
        "INSERT OR REPLACE INTO evidence VALUES (?, ?, ?)",
        [(update_id, kind, _line(to_json(row))) for kind, row in rows],
    )


def _past_update(event: Event, update: Update) -> PastUpdate:
    ended_at = event.at if event.outcome is not None else None
    return PastUpdate(event.model, update, event.stage, event.outcome, ended_at)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _object(text: object) -> dict[str, Any]:
    try:
        row = load_json(str(text))
    except ValueError as error:
        raise RecordUnreadable("a row is no JSON") from error
    if not isinstance(row, dict):
        raise RecordUnreadable("a row is no object")
    return row


@contextmanager
def _trusted() -> Iterator[None]:
    try:
        yield
    except RecordUnreadable as error:
        raise JournalUnreadable(f"the journal holds what this build does not know: {error}") from error
