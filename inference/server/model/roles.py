"""The roles of a model's two slots, and the choice of the slot that answers a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from inference.server.events import SlotChanged
from inference.server.model.slot import Slot, SlotState
from inference.server.model.stats import RevisionStats

# Time reserved for handing a request over from a trial to the previous slot: ticks, frames, a busy machine.
HANDOVER_SECONDS = 0.2  # at least
HANDOVER_SHARE = 0.25  # of the time left until the deadline


class Role(StrEnum):
    """What a slot is used for."""

    FREE = "FREE"  # holds no load
    ACTIVE = "ACTIVE"  # answers requests
    TRIAL = "TRIAL"  # answers requests, not committed yet
    CANDIDATE = "CANDIDATE"  # loaded, not activated
    PREVIOUS = "PREVIOUS"  # was active before, stays loaded
    FALLBACK = "FALLBACK"  # loading on the CPU; becomes active when it has answered


class TrialOutcome(StrEnum):
    """How a trial ends."""

    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    YIELDED = "YIELDED"  # the slot was needed for the CPU fallback


@dataclass(frozen=True, slots=True)
class TrialEnd:
    """How the last trial ended."""

    bundle_digest: str
    outcome: TrialOutcome
    ended_at: datetime
    reason: str = ""  # why the server ended it without a command


@dataclass(slots=True, eq=False)
class Trial:
    """The trial in progress."""

    slot: Slot
    previous: Slot | None  # answers the requests that the trial fails; None at a first install
    transaction_id: str
    started_at: datetime
    lease_ends: float  # clock.monotonic()
    baseline: RevisionStats | None  # the previous revision's numbers at activation


@dataclass(slots=True, eq=False)
class Roles:
    """The two slots of one model. Loop thread only."""

    slots: Mapping[str, Slot]
    active: Slot | None = None  # stays set while the slot is being reloaded
    previous: Slot | None = None
    fallback: Slot | None = None
    trial: Trial | None = None
    last_trial: TrialEnd | None = None
    generation: int = 1

    def role_of(self, slot: Slot) -> Role:
        """The current role of a slot."""
        if slot is self.active:
            return Role.TRIAL if self.trial is not None else Role.ACTIVE
        if slot is self.previous and slot.load is not None:
            return Role.PREVIOUS
        if slot is self.fallback:
            return Role.FALLBACK
        return Role.CANDIDATE if slot.load is not None else Role.FREE

    def other_slot(self, slot: Slot) -> Slot:
        """The slot that is not `slot`."""
        return next(other for other in self.slots.values() if other is not slot)

    def free_slot(self) -> Slot | None:
        """A slot that can take a load; None if there is none. The active slot is never free."""
        free = (slot for slot in self.slots.values() if self.role_of(slot) is Role.FREE)
        return next((slot for slot in free if slot is not self.active), None)

    def slot_holding(self, load_id: str) -> Slot | None:
        """The slot that holds a load; None if no slot does. A retiring slot does not count."""
        for slot in self.slots.values():
            if slot.load is not None and slot.load.load_id == load_id and slot.state is not SlotState.RETIRING:
                return slot
        return None

    def answering_slot(self) -> Slot | None:
        """The slot that can answer now: the active one, else during a trial the previous one, else None."""
        if self.active is not None and self.active.is_loaded:
            return self.active
        if self.trial is not None and self.trial.previous is not None and self.trial.previous.is_loaded:
            return self.trial.previous
        return None

    def is_ready(self) -> bool:
        """Whether the answering slot has passed its last self-test."""
        slot = self.answering_slot()
        return slot is not None and slot.load is not None and slot.load.is_proven

    def set_active(self, active: Slot | None) -> None:
        """Make a slot active; increments the generation."""
        self.active = active
        self.generation += 1


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """The slot that a request goes to."""

    slot: Slot
    previous: Slot | None = None  # answers if the trial fails the request
    try_until: float = 0.0  # clock.monotonic() at which `previous` takes over; 0 for never


def choose_route(roles: Roles, rows: int, now: float, deadline: float) -> RouteDecision | None:
    """Choose the slot for a request; None if no slot is active.

    Without a trial this is the active slot, even while it is being reloaded. During a trial it is the slot on
    trial if the deadline leaves enough time for both slots, else the previous slot. While the previous slot is
    being reloaded, the trial may use the whole time; a request that it fails then waits for the previous slot.
    """
    if roles.active is None:
        return None
    trial = roles.trial
    previous = trial.previous if trial is not None else None
    if previous is None or previous.load is None:
        return RouteDecision(roles.active)
    if not roles.active.is_loaded:
        return RouteDecision(previous)
    if not previous.is_loaded:
        return RouteDecision(roles.active, previous, deadline)
    need = previous.dispatcher.limit_of(rows) if previous.dispatcher.cost.row_seconds == 0 else 0.0
    need = need or 2 * previous.dispatcher.expected_seconds(rows)
    try_until = trial_limit(now, deadline, roles.active.dispatcher.limit_of(rows), need)
    if try_until is None:
        return RouteDecision(previous)
    return RouteDecision(roles.active, previous, try_until)


def trial_limit(now: float, deadline: float, own_limit: float, previous_need: float) -> float | None:
    """The time at which the previous slot must take over from a trial; None if the deadline is too short for both.

    Args:
        now: the clock, seconds.
        deadline: of the request, on the same clock.
        own_limit: the trial's time limit, from its own measured cost, seconds.
        previous_need: seconds that the previous slot needs.
    """
    left = deadline - now
    room = left - previous_need - max(HANDOVER_SECONDS, HANDOVER_SHARE * left)
    if room <= 0:
        return None
    return now + min(own_limit, room)


def slot_event(model: str, roles: Roles, slot: Slot, change: str, detail: str, reason: str = "") -> SlotChanged:
    """The event for a change of a slot, with its current state."""
    load = slot.load
    return SlotChanged(
        model=model,
        slot=slot.name,
        change=change,
        state=slot.state,
        role=roles.role_of(slot),
        revision="" if load is None else load.bundle.revision,
        digest="" if load is None else load.bundle.bundle_digest,
        device="" if load is None else load.device,
        pid=0 if slot.process is None else slot.process.pid,
        seconds=0.0 if load is None else load.load_seconds,
        detail=detail,
        reason=reason,
    )
