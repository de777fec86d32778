"""Status for displays: the progress of a step, and snapshots of the record. Not persisted; no decision reads it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from common.clock import Clock
from updater.commands import OnEnd, ignore_end
from updater.core.record import Event, ModelRecord


@dataclass(frozen=True, slots=True)
class Share:
    """Progress in bytes."""

    done_bytes: int = 0
    total_bytes: int = 0  # 0: nothing is under way, or the size is not known

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


class Progress:
    """Progress of one model's long-running step. Set by the model's thread, read by any."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._lock = threading.Lock()
        self._share = Share()

    @property
    def share(self) -> Share:
        """The progress now."""
        with self._lock:
            return self._share

    def report(self, done_bytes: int, total_bytes: int) -> None:
        """Set the progress."""
        with self._lock:
            self._share = Share(done_bytes, total_bytes)

    def clear(self) -> None:
        """The step has ended."""
        self.report(0, 0)


MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class StatusSnapshot:
    """One model's state at one moment."""

    record: ModelRecord
    events: tuple[Event, ...] = ()  # the last ones, oldest first
    version: int = 0  # grows with every change
    fault: str = ""  # for people: why the updater itself makes no progress; empty if it does


class StatusPublisher:
    """The latest snapshot of one model. Published by the model's thread, read by any."""

    def __init__(self, record: ModelRecord, clock: Clock) -> None:
        """Publish a record that was loaded."""
        self._clock = clock
        self._changed = threading.Condition()
        self._snapshot = StatusSnapshot(record)

    @property
    def snapshot(self) -> StatusSnapshot:
        """The latest snapshot."""
        with self._changed:
            return self._snapshot

    def publish(self, record: ModelRecord, events: Sequence[Event], fault: str = "") -> None:
        """Publish what was written; `fault`: what the updater works without, for people."""
        with self._changed:
            kept = (*self._snapshot.events, *events)[-MAX_EVENTS:]
            self._snapshot = StatusSnapshot(record, kept, self._snapshot.version + 1, fault)
            self._changed.notify_all()

    def report_fault(self, fault: str) -> None:
        """Publish that the updater makes no progress, until the next `publish`. From any thread."""
        with self._changed:
            version = self._snapshot.version + 1
            self._snapshot = replace(self._snapshot, version=version, fault=fault)
            self._changed.notify_all()

    def wait(
        self, condition: Callable[[StatusSnapshot], bool], seconds: float, on_end: OnEnd = ignore_end
    ) -> StatusSnapshot | None:
        """Wait until a snapshot satisfies the condition.

        Args:
            condition: of a snapshot.
            seconds: longest wait.
            on_end: of the caller's call.

        Returns:
            The snapshot; None if there is none within the time, or the caller has gone.
        """
        ends, has_gone = self._clock.monotonic() + seconds, threading.Event()

        def leave() -> None:
            has_gone.set()
            with self._changed:
                self._changed.notify_all()

        if not on_end(leave):
            return None
        with self._changed:
            while not condition(self._snapshot):
                left = ends - self._clock.monotonic()
                if left <= 0 or has_gone.is_set():
                    return None
                self._changed.wait(left)
            return self._snapshot
