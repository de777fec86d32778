"""What each model's updates look like now, for whoever asks; and the wait until they look otherwise."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.clock import Clock
from updater.record import Event, ModelRecord

MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class Shown:
    """One model's state at one moment."""

    record: ModelRecord
    events: tuple[Event, ...] = ()  # the last ones, oldest first
    version: int = 0  # grows with every change


class Board:
    """One model's place on the wall. Written by its own thread, read by any."""

    def __init__(self, record: ModelRecord, clock: Clock) -> None:
        """Show a record that was loaded."""
        self._clock = clock
        self._changed = threading.Condition()
        self._shown = Shown(record)

    @property
    def shown(self) -> Shown:
        """What is there now."""
        with self._changed:
            return self._shown

    def show(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Show what was written."""
        with self._changed:
            kept = (*self._shown.events, *events)[-MAX_EVENTS:]
            self._shown = Shown(record, kept, self._shown.version + 1)
            self._changed.notify_all()

    def wait(self, is_so: Callable[[Shown], bool], seconds: float) -> Shown | None:
        """Wait until it looks so; None if it does not within the time."""
        ends = self._clock.monotonic() + seconds
        with self._changed:
            while not is_so(self._shown):
                left = ends - self._clock.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            return self._shown
