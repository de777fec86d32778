"""The two slots of one model as a pure record: who answers, what is loaded where, and the trial in progress."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from common.bundle import Bundle
from inference.server.model.stats import StatsKey
from inference.server.request import ServedBy

SLOT_NAMES = ("a", "b")
CPU_DEVICE = "cpu"
UNRESOLVED_DEVICES = ("auto", "cuda")  # settings that name no single device


@dataclass(frozen=True, slots=True)
class Load:
    """A bundle that a slot holds or is loading."""

    load_id: str
    bundle: Bundle
    folder: Path
    device: str  # a policy such as "auto" until the runner has reported its devices
    transaction_id: str
    begun_at: float  # clock.monotonic()
    is_loaded: bool = False
    loaded_at: float = 0.0  # clock.monotonic() of the last complete load; 0: never
    load_seconds: float = 0.0
    precision: str = ""
    is_proven: bool = False  # has answered since it was loaded, and has passed its last self-test
    next_device: str = ""  # device for the next process, because this one's has run out of memory; empty: the same
    key: StatsKey = field(init=False, repr=False, compare=False)  # of its counters

    def __post_init__(self) -> None:
        """Make what every answer needs."""
        object.__setattr__(self, "key", StatsKey(self.bundle.bundle_digest, self.device))

    @property
    def placement(self) -> str:
        """Load id and device; a request keeps it for each load that had no memory for it."""
        return f"{self.load_id} on {self.device}"

    def served_by(self, model: str, slot: str, node: str) -> ServedBy:
        """The `served_by` record of its predictions."""
        return ServedBy(model, self.bundle.revision, self.bundle.bundle_digest, self.device, slot, node)

    def reset(self, now: float) -> "Load":
        """The load as it begins again in a new process, on `next_device` if that is set."""
        device = self.next_device or self.device
        return replace(self, device=device, next_device="", is_loaded=False, is_proven=False, begun_at=now)


class SlotState(StrEnum):
    """State of a slot's process."""

    EMPTY = "EMPTY"  # no process
    STARTING = "STARTING"  # the process imports its libraries
    READY = "READY"  # the process is idle, without a model
    LOADING = "LOADING"  # a model is being loaded and warmed up
    LOADED = "LOADED"  # a model can answer
    RETIRING = "RETIRING"  # the process ends after its last lease
    FAILED = "FAILED"  # the process ended unexpectedly


class SlotEvent(StrEnum):
    """Event of a slot's process."""

    SPAWNED = "SPAWNED"
    HELLO_RECEIVED = "HELLO_RECEIVED"
    LOAD_BEGUN = "LOAD_BEGUN"
    LOAD_ENDED = "LOAD_ENDED"
    RETIRE_REQUESTED = "RETIRE_REQUESTED"
    PROCESS_ENDED = "PROCESS_ENDED"


SLOT_STATES: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (SlotState.EMPTY, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.EMPTY, SlotEvent.RETIRE_REQUESTED): SlotState.EMPTY,
    (SlotState.STARTING, SlotEvent.HELLO_RECEIVED): SlotState.READY,
    (SlotState.STARTING, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.STARTING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.READY, SlotEvent.LOAD_BEGUN): SlotState.LOADING,
    (SlotState.READY, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.READY, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADING, SlotEvent.LOAD_ENDED): SlotState.LOADED,
    (SlotState.LOADING, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.LOADING, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.LOADED, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.LOADED, SlotEvent.PROCESS_ENDED): SlotState.FAILED,
    (SlotState.RETIRING, SlotEvent.RETIRE_REQUESTED): SlotState.RETIRING,
    (SlotState.RETIRING, SlotEvent.PROCESS_ENDED): SlotState.EMPTY,
    (SlotState.FAILED, SlotEvent.SPAWNED): SlotState.STARTING,
    (SlotState.FAILED, SlotEvent.RETIRE_REQUESTED): SlotState.EMPTY,
}


def next_state(state: SlotState, event: SlotEvent) -> SlotState:
    """The state after an event.

    Raises:
        RuntimeError: the event cannot happen in this state.
    """
    after = SLOT_STATES.get((state, event))
    if after is None:
        raise RuntimeError(f"a slot that is {state} cannot handle {event}")
    return after


class Role(StrEnum):
    """What a slot is used for."""

    FREE = "FREE"  # holds no load
    ACTIVE = "ACTIVE"  # answers requests
    TRIAL = "TRIAL"  # answers requests, not committed yet
    CANDIDATE = "CANDIDATE"  # loaded, not activated
    PREVIOUS = "PREVIOUS"  # was active before, stays loaded
    FALLBACK = "FALLBACK"  # loading on the CPU; becomes active when it has answered


ANSWERING_ROLES = frozenset({Role.ACTIVE, Role.TRIAL, Role.PREVIOUS, Role.FALLBACK})  # requests may be routed to them


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """The state of one slot, and the load in it."""

    name: str
    state: SlotState = SlotState.EMPTY
    load: Load | None = None
    is_leased: bool = False  # a request, or an item in its process, holds a lease on it
    deaths: int = 0  # unexpected ends of its processes
    deaths_in_row: int = 0
    brief_deaths: tuple[float, ...] = ()  # clock.monotonic() of the last deaths after which it had answered briefly
    last_failure: str = ""
    respawn_at: float | None = None  # clock.monotonic() of the next start; None if none is due
    devices: tuple[tuple[str, str], ...] = ()  # device and its computing precision, best first

    @property
    def failures(self) -> int:
        """Deaths in a row, or those of the last minutes after brief service if they are more."""
        return max(self.deaths_in_row, len(self.brief_deaths))

    @property
    def is_loaded(self) -> bool:
        """Whether the slot can answer."""
        return self.state is SlotState.LOADED

    @property
    def has_process(self) -> bool:
        """Whether a process lives."""
        return self.state not in (SlotState.EMPTY, SlotState.FAILED)

    @property
    def is_proven(self) -> bool:
        """Whether what it holds has answered, and has passed its last self-test."""
        return self.load is not None and self.load.is_proven

    @property
    def digest(self) -> str:
        """Digest of the bundle that it holds; empty if it holds none."""
        return "" if self.load is None else self.load.bundle.bundle_digest


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


ALL_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Trial:
    """The trial in progress."""

    slot: str
    previous: str | None  # the slot that answers what the trial fails; None at a first install
    transaction_id: str
    started_at: datetime
    lease_ends: float  # clock.monotonic()
    percent: float = ALL_PERCENT  # of the requests that it gets; less: a canary, and the previous slot gets the others


class GapEnd(StrEnum):
    """Why a gap ends without a commit."""

    LEASE_EXPIRED = "the lease of the gap has run out"
    ABANDONED = "accepted requests have no other model"  # the process that held them has ended, or its load was retired


@dataclass(frozen=True, slots=True)
class Gap:
    """The active model is unloaded by command; a commit ends the gap."""

    load: Load  # is loaded again if nothing answers when the lease has run out
    lease_seconds: float
    lease_ends: float  # clock.monotonic()
    end: GapEnd | None = None  # it is over: the model is loaded as soon as nothing else is on its device

    @property
    def is_over(self) -> bool:
        """Whether the next load is the unloaded model's."""
        return self.end is not None


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """Which requests are copied for a second slot, and for how long."""

    share: float  # of the requests, 0 to 1; 0: none
    busy_share: float = 1.0  # of its time that the second slot may spend on copies, above 0
    max_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Shadow:
    """A load whose answers are compared: a candidate's with the active slot's, a trial's with the previous slot's."""

    load_id: str
    policy: ShadowPolicy
    started_at: datetime
    begun_at: float  # clock.monotonic()
    ends_at: float  # clock.monotonic(), after which nothing is copied any more; the comparison stays

    def is_copying(self, now: float) -> bool:
        """Whether requests are copied now."""
        return self.policy.share > 0 and now < self.ends_at


@dataclass(frozen=True, slots=True)
class CpuFallbackRow:
    """A model that was moved to the CPU because its device ran out of memory."""

    model: str
    device: str  # that ran out of memory
    fallback_device: str
    bundle_digest: str  # that was loaded then
    since: datetime  # with its zone
    reason: str  # one of `reasons.SHORTAGES`


@dataclass(frozen=True, slots=True)
class FallbackMove:
    """The move to the CPU: what of it is under way, and when it may be tried again."""

    pending_load: Load | None = None  # starts when the other slot is empty
    begun_at: float = 0.0  # clock.monotonic()
    expected_seconds: float = 0.0  # of the load
    not_before: float = 0.0  # clock.monotonic() at which another may begin


@dataclass(frozen=True, slots=True)
class Pair:
    """The two slots of one model. Apart from `with_leased`, only `transitions.apply` makes the next one."""

    a: SlotRecord = SlotRecord("a")
    b: SlotRecord = SlotRecord("b")
    active: str | None = None  # stays set while the slot is being reloaded
    previous: str | None = None
    fallback: str | None = None  # the slot that is loading on the CPU
    trial: Trial | None = None
    shadow: Shadow | None = None  # of the trial, or of a candidate
    last_trial: TrialEnd | None = None
    generation: int = 1
    cpu_fallback: CpuFallbackRow | None = None  # in effect, as saved in the fallback file
    move: FallbackMove = FallbackMove()
    gap: Gap | None = None  # nothing answers, or a trial that has no previous slot
    is_stopping: bool = False

    def __getitem__(self, name: str) -> SlotRecord:
        """The slot of this name."""
        return self.a if name == "a" else self.b

    def __iter__(self) -> Iterator[SlotRecord]:
        """Both slots."""
        return iter((self.a, self.b))

    def with_leased(self, name: str, *, is_leased: bool) -> "Pair":
        """The pair that knows whether a slot holds leases: a fact that is read when an event is applied."""
        slot = replace(self[name], is_leased=is_leased)
        return replace(self, a=slot) if name == "a" else replace(self, b=slot)

    def other(self, name: str) -> SlotRecord:
        """The slot that does not have this name."""
        return self.b if name == "a" else self.a

    @property
    def active_slot(self) -> SlotRecord | None:
        """The slot that answers callers; None before the first load and in a gap."""
        return None if self.active is None else self[self.active]

    @property
    def previous_of_trial(self) -> SlotRecord | None:
        """The slot that answers the requests that the trial fails; None without a trial or at a first install."""
        return None if self.trial is None or self.trial.previous is None else self[self.trial.previous]

    @property
    def may_leave_gap(self) -> bool:
        """Whether the active slot can be retired: it answers what it has, and nothing else is under way."""
        active = self.active_slot
        if active is None or not active.is_loaded or self.other(active.name).load is not None:
            return False
        return self.trial is None and self.move.pending_load is None and self.cpu_fallback is None

    @property
    def is_canary(self) -> bool:
        """Whether the trial gets a part of the requests only."""
        return self.trial is not None and self.trial.previous is not None and self.trial.percent < ALL_PERCENT

    @property
    def trial_percent(self) -> float:
        """Which percentage of the requests the trial gets; 0 without a trial."""
        if self.trial is None:
            return 0.0
        return ALL_PERCENT if self.trial.previous is None else self.trial.percent

    def compared_slots(self) -> tuple[SlotRecord, SlotRecord] | None:
        """The slot whose answers are judged, and the one that they are compared with; None if nothing is compared."""
        judged = None if self.shadow is None else self.slot_holding(self.shadow.load_id)
        reference = self.active_slot if self.trial is None else self.previous_of_trial
        return None if judged is None or reference is None or judged is reference else (judged, reference)

    def role_of(self, name: str) -> Role:
        """The current role of a slot."""
        if name == self.active:
            return Role.TRIAL if self.trial is not None else Role.ACTIVE
        if name == self.previous and self[name].load is not None:
            return Role.PREVIOUS
        if name == self.fallback:
            return Role.FALLBACK
        return Role.CANDIDATE if self[name].load is not None else Role.FREE

    def free_slot(self) -> SlotRecord | None:
        """A slot that can take a load; None if there is none. The active slot is never free."""
        if self.gap is not None and self.gap.is_over:
            return None  # the next load is the unloaded model's
        return next((slot for slot in self if self.role_of(slot.name) is Role.FREE), None)

    def slot_holding(self, load_id: str) -> SlotRecord | None:
        """The slot that holds a load; None if no slot does. A retiring slot does not count."""
        for slot in self:
            if slot.load is not None and slot.load.load_id == load_id and slot.state is not SlotState.RETIRING:
                return slot
        return None

    def find_slot(self, load_id: str) -> SlotRecord | None:
        """The slot that holds a load, or the active slot for an empty id; None if there is none."""
        return self.slot_holding(load_id) if load_id else self.active_slot

    def answering_slot(self) -> SlotRecord | None:
        """The slot that can answer now: the active one, else during a trial the previous one, else None.

        Beside a canary it is the previous one first: it answers the requests that name no version.
        """
        if self.trial is None:
            active = self.active_slot
            return active if active is not None and active.is_loaded else None
        slots = (self.active_slot, self.previous_of_trial)
        for slot in reversed(slots) if self.is_canary else slots:
            if slot is not None and slot.is_loaded:
                return slot
        return None

    def is_ready(self) -> bool:
        """Whether the active slot, or the previous slot of a trial, can answer and has passed its last self-test.

        A trial that fails its self-tests, or has not been tested yet, fails no request: the previous slot answers it.
        """
        slots = (self.active_slot, self.previous_of_trial)
        return any(slot is not None and slot.is_loaded and slot.is_proven for slot in slots)
