"""Who answers: the two slots of a model and what each is there for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from inference.server.model.slot import Slot, SlotState
from inference.server.model.stats import RevisionStats


class Role(StrEnum):
    """What a slot is there for."""

    FREE = "FREE"  # stands by
    ACTIVE = "ACTIVE"  # answers the callers
    TRIAL = "TRIAL"  # answers the callers, uncommitted
    CANDIDATE = "CANDIDATE"  # loaded to be proven
    PREVIOUS = "PREVIOUS"  # answered before, kept warm
    FALLBACK = "FALLBACK"  # on its way to answer in place of the active one, which ran out of memory


class TrialOutcome(StrEnum):
    """How a trial ends."""

    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    YIELDED = "YIELDED"  # its slot was needed to keep the service up


@dataclass(frozen=True, slots=True)
class TrialEnd:
    """How the last trial ended."""

    bundle_digest: str
    outcome: TrialOutcome
    ended_at: datetime
    reason: str = ""  # why the server ended it by itself


@dataclass(slots=True, eq=False)
class Trial:
    """A revision that answers the callers, for a trial lease."""

    slot: Slot
    previous: Slot | None  # answers what the trial fails; None at a first install
    transaction_id: str
    started_at: datetime
    lease_ends: float  # clock.monotonic()
    baseline: RevisionStats | None  # the previous revision's numbers at activation


@dataclass(slots=True, eq=False)
class Roles:
    """The two slots of one model. Loop thread only."""

    slots: Mapping[str, Slot]
    active: Slot | None = None  # designated to answer, even while it is loaded again
    previous: Slot | None = None
    fallback: Slot | None = None
    trial: Trial | None = None
    last_trial: TrialEnd | None = None
    generation: int = 1

    def role_of(self, slot: Slot) -> Role:
        """What a slot is there for."""
        if slot is self.active:
            return Role.TRIAL if self.trial is not None else Role.ACTIVE
        if slot is self.previous and slot.load is not None:
            return Role.PREVIOUS
        if slot is self.fallback:
            return Role.FALLBACK
        return Role.CANDIDATE if slot.load is not None else Role.FREE

    def other(self, slot: Slot) -> Slot:
        """The slot beside it."""
        return next(other for other in self.slots.values() if other is not slot)

    def free_slot(self) -> Slot | None:
        """A slot that a load may take; the active one is never free."""
        free = (slot for slot in self.slots.values() if self.role_of(slot) is Role.FREE)
        return next((slot for slot in free if slot is not self.active), None)

    def holding(self, load_id: str) -> Slot | None:
        """The slot that holds a load; one that is being emptied holds none any more."""
        for slot in self.slots.values():
            if slot.load is not None and slot.load.load_id == load_id and slot.state is not SlotState.RETIRING:
                return slot
        return None

    def answering(self) -> Slot | None:
        """The slot that can answer now: the active one, or in a trial the previous one when the trial is down."""
        if self.active is not None and self.active.is_loaded:
            return self.active
        if self.trial is not None and self.trial.previous is not None and self.trial.previous.is_loaded:
            return self.trial.previous
        return None

    def is_ready(self) -> bool:
        """Whether a slot that routing may use has answered its last self-test."""
        slot = self.answering()
        return slot is not None and slot.load is not None and slot.load.is_proven

    def swap(self, active: Slot | None) -> None:
        """Let another slot answer; every such change is a new generation."""
        self.active = active
        self.generation += 1
