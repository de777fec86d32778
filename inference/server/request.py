"""The records that a request is made of on its way through the server."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import HotslotError
from inference.wire import EntailmentScores

_request_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class EntailmentInput:
    """One picture and what is to be judged about it, checked."""

    image: bytes  # JPEG, PNG or WebP file
    statements: tuple[str, ...]  # 1..32
    premise: str  # may be empty

    @property
    def rows(self) -> int:
        """Device rows: one a statement."""
        return len(self.statements)

    @property
    def size_bytes(self) -> int:
        """Memory that it holds while it waits, roughly."""
        return len(self.image) + 4 * (sum(map(len, self.statements)) + len(self.premise))


Payload = EntailmentInput  # of a request; grows with the tasks
Outcome = tuple[EntailmentScores, ...]  # one a row


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Which model answered, where."""

    model: str
    revision: str
    digest: str
    device: str
    slot: str
    node: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says, and where the time went."""

    outcome: Outcome
    served_by: ServedBy
    queued_seconds: float
    prepared_seconds: float
    computed_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a runner has no answer to an item."""

    reason: str  # for example "ENGINE_FAILED"
    message: str
    field: str = ""  # the caller's, if the caller is to blame

    @property
    def blames_caller(self) -> bool:
        """Whether the caller's input is wrong; then no model is."""
        return bool(self.field)


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a trial has failed, to be counted against it once the previous slot has answered."""

    bundle_digest: str
    device: str
    reason: str  # empty if the count is kept elsewhere (a death)


class Lease(Protocol):
    """The right to use a slot's model until it is ended."""

    def end(self) -> None:
        """Give the right back; a second time is harmless."""
        ...


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request inside the server, from acceptance until its outcome is set, exactly once."""

    payload: Payload
    accepted_at: float  # clock.monotonic()
    deadline: float  # clock.monotonic() after which nobody waits
    outcome: asyncio.Future[Prediction]
    id: int = field(default_factory=_request_ids.__next__)
    runs: int = 0  # how often it was sent to a runner
    deaths: int = 0  # runners that ended while they held it
    alone: bool = False  # must not share a runner's hands with others
    on_slot: str = ""  # that it was last given to; another one's failures are nothing to it any more
    try_until: float = 0.0  # during a trial: when the previous slot takes over; 0 if never
    attribution: Attribution | None = None  # set when a trial has failed it
    sent_at: float = 0.0
    internal: bool = False  # probe or self-test: outside admission and traffic counts
    out_of_memory_on: tuple[str, ...] = ()  # places of the loads that had no memory for it
    leases: list[Lease] = field(default_factory=list)
    on_done: Callable[["PendingRequest"], None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.outcome.done()

    def finish(self, result: Prediction | HotslotError) -> bool:
        """Set the outcome, unless it is set; give back what the request holds.

        Returns:
            Whether this call set it.
        """
        was_open = not self.outcome.done()
        if was_open and isinstance(result, HotslotError):
            self.outcome.set_exception(result)
        elif was_open and isinstance(result, Prediction):
            self.outcome.set_result(result)
        self.release()
        return was_open

    def release_leases(self) -> None:
        """Give back the slots that it holds, and go on waiting."""
        for lease in self.leases:
            lease.end()
        self.leases.clear()

    def release(self) -> None:
        """Give back leases and the place at the entrance; a second time is harmless."""
        if not self.outcome.done():
            self.outcome.cancel()
        self.release_leases()
        if self.on_done is not None:
            done, self.on_done = self.on_done, None
            done(self)
