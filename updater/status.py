"""How far what takes long has come, for whoever looks. Not durable: it says nothing that a decision needs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.clock import Clock
from updater.core.record import Event, ModelRecord


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole, in bytes."""

    done_bytes: int = 0
    total_bytes: int = 0  # 0: nothing is under way, or nobody knows how much it is

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


class Progress:
    """One model's step in progress. Told by its own thread, read by any."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._lock = threading.Lock()
        self._share = Share()

    @property
    def share(self) -> Share:
        """How far it is now."""
        with self._lock:
            return self._share

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        """Say how far it is."""
        with self._lock:
            self._share = Share(done_bytes, total_bytes)

    def clear(self) -> None:
        """It is over, one way or another."""
        self.tell(0, 0)


MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """One model's state at one moment."""

    record: ModelRecord
    events: tuple[Event, ...] = ()  # the last ones, oldest first
    version: int = 0  # grows with every change


class StatusPublisher:
    """One model's place on the wall. Written by its own thread, read by any."""

    def __init__(self, record: ModelRecord, clock: Clock) -> None:
        """Show a record that was loaded."""
        self._clock = clock
        self._changed = threading.Condition()
        self._snapshot = StatusSnapshot(record)

    @property
    def snapshot(self) -> StatusSnapshot:
        """What is there now."""
        with self._changed:
            return self._snapshot

    def show(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Show what was written."""
        with self._changed:
            kept = (*self._snapshot.events, *events)[-MAX_EVENTS:]
            self._snapshot = StatusSnapshot(record, kept, self._snapshot.version + 1)
            self._changed.notify_all()

    def wait(self, is_so: Callable[[StatusSnapshot], bool], seconds: float) -> StatusSnapshot | None:
        """Wait until it looks so; None if it does not within the time."""
        ends = self._clock.monotonic() + seconds
        with self._changed:
            while not is_so(self._snapshot):
                left = ends - self._clock.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            return self._snapshot
