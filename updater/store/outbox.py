"""Events that wait for webhooks: rows of the journal, written in the transaction of the events themselves.

What has happened is told, whatever dies in between; more than MAX_ROWS never wait for one receiver.
"""

import sqlite3
import uuid
from collections.abc import Mapping, Sequence

from updater.core.record import Event
from updater.outbox import Queued, Subscribers
from updater.store.database import Database

MAX_ROWS = 1000  # a receiver; the oldest are forgotten beyond this


class JournalOutbox:
    """The port `updater.outbox.Outbox`, in tables of the journal. From any thread."""

    def __init__(self, database: Database, subscribers: Subscribers) -> None:
        """Touch nothing.

        Args:
            database: the journal's.
            subscribers: whom to tell.
        """
        self._database = database
        self._subscribers = subscribers

    def put(self, connection: sqlite3.Connection, events: Sequence[Event]) -> Mapping[str, int]:
        """Queue what somebody asked for, within a change that is under way.

        Returns:
            How many waiting events had to go, by receiver; for those who got something new.
        """
        dropped: dict[str, int] = {}
        hooks = self._subscribers.hooks
        for event in events:
            event_id = uuid.uuid4().hex  # not of our own numbers: a journal from a backup would give them out again
            for hook in (hook.hook for hook in hooks if hook.wants(event.name)):
                body = self._subscribers.body_of(event, event_id)
                connection.execute(
                    "INSERT INTO outbox (hook, event_id, event, body) VALUES (?, ?, ?, ?)",
                    (hook, event_id, event.name, body),
                )
                done = connection.execute(
                    "DELETE FROM outbox WHERE hook = ? AND number <= "
                    "(SELECT number FROM outbox WHERE hook = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                    (hook, hook, MAX_ROWS),
                )
                dropped[hook] = dropped.get(hook, 0) + done.rowcount
        return dropped

    def told(self, dropped: Mapping[str, int]) -> None:
        """The change is durable: wake whoever delivers."""
        for hook, count in dropped.items():
            if count:
                self._subscribers.on_dropped(hook, count)
        if dropped:
            self._subscribers.on_queued()

    def next(self, hook: str) -> Queued | None:
        """The oldest event that waits for a receiver."""
        rows = self._database.rows(
            "SELECT number, event_id, event, body, refusals FROM outbox WHERE hook = ? ORDER BY number LIMIT 1", (hook,)
        )
        if not rows:
            return None
        number, event_id, event, body, refusals = map(str, rows[0])
        return Queued(int(number), event_id, event, body, int(refusals))

    def remove(self, hook: str, number: int) -> None:
        """It is delivered, or given up; harmless when repeated."""
        with self._database.change() as connection:
            connection.execute("DELETE FROM outbox WHERE hook = ? AND number = ?", (hook, number))

    def refused(self, hook: str, number: int) -> None:
        """Count that the receiver did not want it."""
        with self._database.change() as connection:
            connection.execute(
                "UPDATE outbox SET refusals = refusals + 1 WHERE hook = ? AND number = ?", (hook, number)
            )

    def waiting(self, hook: str) -> int:
        """How many wait for a receiver."""
        return int(str(self._database.rows("SELECT count(*) FROM outbox WHERE hook = ?", (hook,))[0][0]))

    def forget_others(self) -> None:
        """Drop what waits for receivers that the settings no longer name.

        Raises:
            JournalNotWritten: an OSError; nothing changed.
        """
        names = [hook.hook for hook in self._subscribers.hooks]
        known = [str(name) for (name,) in self._database.rows("SELECT DISTINCT hook FROM outbox")]
        for name in set(known) - set(names):
            with self._database.change() as connection:
                connection.execute("DELETE FROM outbox WHERE hook = ?", (name,))
