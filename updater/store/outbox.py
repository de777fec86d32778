"""Webhook events in the journal: queued in the same transaction as the event itself, removed when delivered.

An event that was recorded is therefore always delivered, even after a crash, and one that was rolled back never is.
At most MAX_ROWS events wait for one receiver; the oldest are dropped beyond that.
"""

import fnmatch
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from updater.core.record import Event
from updater.store.database import Database

MAX_ROWS = 1000  # for each receiver


@dataclass(frozen=True, slots=True)
class Subscription:
    """One receiver, and the events that it gets."""

    hook: str  # name of the receiver
    events: tuple[str, ...]  # names, or patterns with "*"

    def matches(self, event: str) -> bool:
        """Whether the receiver gets events of this name."""
        return any(fnmatch.fnmatchcase(event, pattern) for pattern in self.events)


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """An event that waits for a receiver."""

    number: int  # increases in queue order
    event_id: str
    event: str  # name
    body: str  # JSON
    refusals: int  # by the receiver, so far


@dataclass(frozen=True, slots=True)
class Subscribers:
    """All receivers, and what to call when events are queued or dropped. Default: no receivers."""

    hooks: tuple[Subscription, ...] = ()
    encode: Callable[[Event, str], str] = lambda _event, _event_id: ""  # body of an event with this id
    on_queued: Callable[[], None] = lambda: None  # called after each commit that queued events
    on_dropped: Callable[[str, int], None] = lambda _hook, _count: None


class Outbox:
    """The queue table of the journal. From any thread.

    Every method may raise JournalUnreadable; methods that change something may raise JournalNotWritten (an OSError:
    nothing changed).
    """

    def __init__(self, database: Database, subscribers: Subscribers) -> None:
        """Read and write nothing yet."""
        self._database = database
        self._subscribers = subscribers

    def put(self, connection: sqlite3.Connection, events: Sequence[Event]) -> Mapping[str, int]:
        """Queue events for their subscribers, within a transaction of the caller.

        Returns:
            For each receiver that got new events, how many old ones were dropped.
        """
        dropped: dict[str, int] = {}
        hooks = self._subscribers.hooks
        for event in events:
            event_id = uuid.uuid4().hex  # not the row number: a restored backup would use the same number again
            for hook in (hook.hook for hook in hooks if hook.matches(event.name)):
                body = self._subscribers.encode(event, event_id)
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

    def notify(self, dropped: Mapping[str, int]) -> None:
        """Wake the delivery threads, and report dropped events; call it after the commit.

        Args:
            dropped: what `put` returned.
        """
        for hook, count in dropped.items():
            if count:
                self._subscribers.on_dropped(hook, count)
        if dropped:
            self._subscribers.on_queued()

    def next(self, hook: str) -> QueuedEvent | None:
        """The oldest event that waits for a receiver."""
        rows = self._database.rows(
            "SELECT number, event_id, event, body, refusals FROM outbox WHERE hook = ? ORDER BY number LIMIT 1", (hook,)
        )
        if not rows:
            return None
        number, event_id, event, body, refusals = map(str, rows[0])
        return QueuedEvent(int(number), event_id, event, body, int(refusals))

    def remove(self, hook: str, number: int) -> None:
        """Delete an event that was delivered or given up. Idempotent."""
        with self._database.change() as connection:
            connection.execute("DELETE FROM outbox WHERE hook = ? AND number = ?", (hook, number))

    def count_refusal(self, hook: str, number: int) -> None:
        """Add one to an event's refusals."""
        with self._database.change() as connection:
            connection.execute(
                "UPDATE outbox SET refusals = refusals + 1 WHERE hook = ? AND number = ?", (hook, number)
            )

    def count_waiting(self, hook: str) -> int:
        """Number of events that wait for a receiver."""
        return int(str(self._database.rows("SELECT count(*) FROM outbox WHERE hook = ?", (hook,))[0][0]))

    def delete_unsubscribed(self) -> None:
        """Delete the events of receivers that are no longer configured."""
        names = [hook.hook for hook in self._subscribers.hooks]
        known = [str(name) for (name,) in self._database.rows("SELECT DISTINCT hook FROM outbox")]
        for name in set(known) - set(names):
            with self._database.change() as connection:
                connection.execute("DELETE FROM outbox WHERE hook = ?", (name,))
