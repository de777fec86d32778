"""The port between the journal, which queues events in its own transactions, and the webhooks, which deliver them."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from updater.core.record import Event


@dataclass(frozen=True, slots=True)
class Subscription:
    """A receiver, as far as the journal has to know of it."""

    hook: str  # its name
    events: tuple[str, ...]  # names, or patterns with "*"

    def wants(self, event: str) -> bool:
        """Whether an event of this name is for it."""
        return any(fnmatch.fnmatchcase(event, pattern) for pattern in self.events)


@dataclass(frozen=True, slots=True)
class Queued:
    """An event that waits for a receiver."""

    number: int  # its place; later ones are higher
    event_id: str
    event: str  # its name
    body: str  # JSON
    refusals: int  # so far


@dataclass(frozen=True, slots=True)
class Subscribers:
    """The receivers for which the journal queues events; by default there are none."""

    hooks: tuple[Subscription, ...] = ()
    body_of: Callable[[Event, str], str] = lambda _event, _event_id: ""  # what is sent of an event with this id
    on_queued: Callable[[], None] = lambda: None  # called after each commit that left something
    on_dropped: Callable[[str, int], None] = lambda _hook, _count: None


class Outbox(Protocol):
    """Queued events, durably; from any thread. Every method may raise OSError (nothing changed) and JournalUnusable."""

    def next(self, hook: str) -> Queued | None:
        """The oldest event that waits for a receiver."""
        ...

    def remove(self, hook: str, number: int) -> None:
        """Delete an event that is delivered or given up; harmless when repeated."""
        ...

    def refused(self, hook: str, number: int) -> None:
        """Count a refusal by the receiver."""
        ...

    def waiting(self, hook: str) -> int:
        """Number of events that wait for a receiver."""
        ...

    def forget_others(self) -> None:
        """Delete the events of receivers that the settings no longer name."""
        ...
