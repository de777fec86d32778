"""The durable records, the audit trail, the history of updates and their evidence; all models in one file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from updater.core.record import Event, Evidence, ModelRecord, Outcome, Stage, Update
from updater.core.record_json import RecordUnreadable, current_event_name, from_json, read, to_json
from updater.core.rules import Rules
from updater.store.database import Database, JournalUnreadable
from updater.store.outbox import Outbox, Subscribers

MAX_EVENTS = 50_000  # the oldest are forgotten beyond this, with updates that have no event any more
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

    def __init__(self, path: Path, rules: Rules | None = None, subscribers: Subscribers | None = None) -> None:
        """Open the journal; create it if it is missing.

        Args:
            path: of the file; its folder exists.
            rules: used for the safe state of breakers that cannot be read.
            subscribers: receivers for which events are queued; default: none.

        Raises:
            JournalUnreadable: the file exists and cannot be trusted.
            JournalNotWritten: it cannot be created.
        """
        self._rules = rules
        self._database = Database(path)
        self.outbox = Outbox(self._database, subscribers or Subscribers())

    def close(self) -> None:
        """Close the file."""
        self._database.close()

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
        with self._database.change() as connection:
            dropped = self.outbox.put(connection, events)  # in the same transaction, so that no event is lost
            connection.execute(
                "INSERT INTO records VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET row = excluded.row",
                (record.model, _line(to_json(record))),
            )
            for event in events:
                update_id = event.update.update_id if event.update is not None else ""
                connection.execute(
                    "INSERT INTO events (at, model, update_id, stage, name, message) VALUES (?, ?, ?, ?, ?, ?)",
                    (event.at.isoformat(), event.model, update_id, event.stage.value, event.name, event.message),
                )
                if event.update is not None:
                    connection.execute(
                        "INSERT INTO updates (update_id, model, row) VALUES (?, ?, ?) "
                        "ON CONFLICT (update_id) DO UPDATE SET row = excluded.row",
                        (update_id, event.model, _line(to_json(_past_update(event, event.update)))),
                    )
                if event.evidence is not None:
                    connection.execute(
                        "INSERT OR REPLACE INTO evidence VALUES (?, ?, ?)",
                        (update_id, event.stage.value, _line(to_json(event.evidence))),
                    )
            connection.execute(
                "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ? AND seq IN "
                "(SELECT seq FROM events ORDER BY seq LIMIT ?)",
                (MAX_EVENTS, _PRUNE_AT_ONCE),
            )
        self.outbox.notify(dropped)

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
        """What happened to one update, oldest first."""
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
        rows = self._database.rows("SELECT row FROM evidence WHERE update_id = ? ORDER BY rowid", (update_id,))
        with _trusted():
            return [read(Evidence, _object(row)) for (row,) in rows]


def _past_update(event: Event, update: Update) -> PastUpdate:
    ended_at = event.at if event.outcome is not None else None
    return PastUpdate(event.model, update, event.stage, event.outcome, ended_at)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _object(text: object) -> dict[str, Any]:
    try:
        row = json.loads(str(text))
    except (ValueError, RecursionError) as error:
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
