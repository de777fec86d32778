"""The entrance: what is refused is refused at once, before it costs anything."""

import asyncio
from dataclasses import dataclass

from common.errors import DeadlineMissed, HotslotError, NotReady, Overloaded


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much may be inside at once, for one model."""

    max_requests: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs to get in."""

    size_bytes: int
    seconds_left: float  # until the caller's deadline
    expected_seconds: float  # of its own device time at best; 0 if unknown


def refusal(inside_requests: int, inside_bytes: int, capacity: Capacity, ask: Ask) -> HotslotError | None:
    """Decide whether a request gets in; None lets it in."""
    if ask.seconds_left <= 0:
        return DeadlineMissed("the deadline had passed on arrival", reason="DEADLINE_EXPIRED")
    if ask.seconds_left < ask.expected_seconds:
        return DeadlineMissed(
            f"the deadline leaves {ask.seconds_left:.3f} s, the model needs about {ask.expected_seconds:.3f} s",
            reason="DEADLINE_TOO_SHORT",
        )
    if inside_requests >= capacity.max_requests:
        return Overloaded(f"{inside_requests} requests wait, limit {capacity.max_requests}", retry_after_seconds=0.5)
    if inside_bytes + ask.size_bytes > capacity.max_bytes and inside_requests:
        return Overloaded(f"{inside_bytes} bytes wait, limit {capacity.max_bytes}", retry_after_seconds=0.5)
    return None


class Entrance:
    """Counts what is inside for one model and refuses what is too much."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.requests = 0
        self.size_bytes = 0

    def admit(self, ask: Ask) -> None:
        """Let a request in; `leave` must follow.

        Raises:
            HotslotError: it is refused, and nothing was counted.
        """
        error = refusal(self.requests, self.size_bytes, self.capacity, ask)
        if error is not None:
            raise error
        self.requests += 1
        self.size_bytes += ask.size_bytes

    def leave(self, size_bytes: int) -> None:
        """A request that was let in is settled."""
        self.requests -= 1
        self.size_bytes -= size_bytes


class Drain:
    """Whether the server is about to end; one object for all who must know."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.is_leaving = False  # health says NOT_SERVING; requests are still taken until the drain has begun

    @property
    def is_draining(self) -> bool:
        """Whether the streams have been asked to end and no new request is taken."""
        return self.begun.is_set()

    def refuse(self) -> None:
        """Raise what a caller is told while the server drains."""
        if self.begun.is_set():
            raise draining_error()


def draining_error() -> NotReady:
    """What callers are told: another server can answer, now."""
    return NotReady("this server is draining; send it to another", reason="DRAINING", retry_after_seconds=1.0)
