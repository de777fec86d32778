"""Facts that decisions are made from: operators' commands, the hub's releases, the server's state."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum, auto

from updater.core.comparison import AnswerComparison
from updater.core.counts import Counts
from updater.core.label_mix import LabelCount
from updater.core.record import CpuFallback, Installed

CPU_DEVICE = "cpu"


class CommandKind(StrEnum):
    """Commands of hotslot.updates.v1 that change something."""

    CHECK_NOW = "CHECK_NOW"
    UPDATE = "UPDATE"  # argument: revision
    ROLLBACK = "ROLLBACK"
    PAUSE = "PAUSE"  # argument: reason
    RESUME = "RESUME"
    STEP = "STEP"
    PROMOTE = "PROMOTE"
    APPROVE = "APPROVE"  # argument: source digest
    UNQUARANTINE = "UNQUARANTINE"  # argument: source digest
    RESET_BREAKER = "RESET_BREAKER"  # argument: name


@dataclass(frozen=True, slots=True)
class OperatorCommand:
    """An operator's command. Not durable: its caller gets the result when the record is written."""

    kind: CommandKind
    argument: str = ""
    note: str = ""  # who sent it, and why; for the audit trail


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a revision, as the hub lists it."""

    name: str  # as listed: not checked yet
    size: int  # bytes
    sha256: str  # as listed, lower or upper case; empty if the hub does not say


@dataclass(frozen=True, slots=True)
class Release:
    """One revision on the hub."""

    revision: str
    files: tuple[HubFile, ...]
    source_digest: str  # of the declared files; empty if the listing lacks a hash of one
    is_ready: bool = True  # everything that is listed and declared is there, in full
    missing: str = ""  # for people: what is not
    listing: str = ""  # digest of the listing itself, if it lacks a hash of a declared file
    commit_id: str = ""  # of the branch or tag, or its first digits; empty if the hub does not say
    former_digest: str = ""  # as earlier builds computed the source digest; empty if it is the same


@dataclass(frozen=True, slots=True)
class GoldenFacts:
    """The golden set of one model, as far as decisions need it."""

    digest: str  # of its items and pictures; empty if there is none
    questions: int = 0
    expected: int = 0  # questions with an expectation
    min_accuracy: float = 0.0  # least accuracy, 0 to 1
    problem: str = ""  # why it cannot be used: "EMPTY", "UNREADABLE", "OTHER_TASK"; empty if it can
    is_read: bool = True  # False: a large set is being read, which takes several looks


# Words of the server's status, by which the updater decides; a test compares them with the server's own.
LOADED, RETIRING = "LOADED", "RETIRING"  # SlotStatus.state
PREVIOUS = "PREVIOUS"  # SlotStatus.role
TRIAL_COMMITTED, LEASE_EXPIRED, YIELDED = "COMMITTED", "LEASE_EXPIRED", "YIELDED"  # TrialEnd.outcome


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """One slot of the server."""

    load_id: str  # empty if it holds none
    bundle_digest: str
    device: str
    precision: str
    state: str  # SlotStatus.state: "LOADED", "LOADING", "FAILED" …
    role: str  # SlotStatus.role: "FREE", "ACTIVE", "TRIAL", "CANDIDATE", "PREVIOUS", "FALLBACK"
    restarts: int = 0
    resident_bytes: int = 0
    last_failure: str = ""

    @property
    def is_loaded(self) -> bool:
        """Whether it can answer."""
        return self.state == LOADED

    @property
    def is_retiring(self) -> bool:
        """Whether its process is about to end; until then it keeps its memory."""
        return self.state == RETIRING

    @property
    def is_previous(self) -> bool:
        """Whether it holds what answered before the active slot."""
        return self.role == PREVIOUS


@dataclass(frozen=True, slots=True)
class TrialSnapshot:
    """The trial under way."""

    load_id: str
    bundle_digest: str
    previous_load_id: str  # empty at a first install
    lease_left_seconds: float
    baseline: Counts  # of the previous revision, frozen at activation
    awaiting_previous: int = 0  # requests that it has failed; they count as such once the previous slot answers them
    percent: float = 100.0  # of the requests that it gets; the previous slot answers the others


@dataclass(frozen=True, slots=True)
class ShadowSnapshot:
    """Requests are copied, so that the answers of two slots are compared."""

    load_id: str  # that is judged: on trial, or a candidate
    comparison: AnswerComparison
    failed: int = 0  # copies that the second slot did not answer, but for those that were late
    judged: Counts = field(default_factory=Counts)  # copies that this load has answered, or failed in time and alive
    out_of_memory: int = 0  # of the failed ones


@dataclass(frozen=True, slots=True)
class TrialEndSnapshot:
    """The end of the server's last trial."""

    bundle_digest: str
    outcome: str  # "COMMITTED", "ROLLED_BACK", "LEASE_EXPIRED", "YIELDED"
    reason: str = ""  # "OUT_OF_MEMORY", if the server ended it for that


@dataclass(frozen=True, slots=True)
class RevisionSnapshot:
    """The server's counters of one bundle on one device, since it started."""

    bundle_digest: str
    device: str
    counts: Counts
    labels: tuple[LabelCount, ...] = ()  # in its answers to callers


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """A device of the server."""

    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """The server's state of one model, as far as decisions need it."""

    incarnation: str  # server_started_at as text; counters begin at 0 with each incarnation
    generation: int
    slots: tuple[SlotSnapshot, ...]
    active_load_id: str  # empty if nothing is designated to answer
    is_ready: bool  # grpc.health.v1 reports SERVING for the model
    is_draining: bool = False
    last_ended_orderly: bool = False  # the incarnation before this one ended by a drain, as far as is known
    trial: TrialSnapshot | None = None
    shadow: ShadowSnapshot | None = None
    last_trial: TrialEndSnapshot | None = None
    stats: tuple[RevisionSnapshot, ...] = ()
    devices: tuple[DeviceSnapshot, ...] = ()
    cpu_fallback: CpuFallback | None = None  # the model is kept off a device

    @property
    def active(self) -> SlotSnapshot | None:
        """The slot that answers, or is designated to."""
        return next((slot for slot in self.slots if slot.load_id and slot.load_id == self.active_load_id), None)

    def holding(self, bundle_digest: str, device: str = "") -> SlotSnapshot | None:
        """The slot that holds a bundle, on this device if one is named; None if there is none."""
        rows = (slot for slot in self.occupied if device in ("", slot.device))
        return next((slot for slot in rows if slot.bundle_digest == bundle_digest), None)

    @property
    def occupied(self) -> tuple[SlotSnapshot, ...]:
        """The slots that hold a load and are not being emptied."""
        return tuple(slot for slot in self.slots if slot.load_id and not slot.is_retiring)

    def loaded(self, load_id: str) -> SlotSnapshot | None:
        """The slot of a load, if it is loaded."""
        return next((slot for slot in self.slots if slot.load_id == load_id and slot.is_loaded), None)

    def counts_of(self, bundle_digest: str, device: str = "") -> Counts:
        """The counters of a bundle, summed over all devices or of one."""
        on_it = (row for row in self.stats if device in ("", row.device))
        rows = [row.counts for row in on_it if row.bundle_digest == bundle_digest]
        return Counts(
            answered=sum(row.answered for row in rows),
            failed=sum(row.failed for row in rows),
            not_finite=sum(row.not_finite for row in rows),
            out_of_memory=sum(row.out_of_memory for row in rows),
            late=sum(row.late for row in rows),
            restarts=sum(row.restarts for row in rows),
            latency=tuple(map(sum, zip(*(row.latency for row in rows), strict=False))),
            latency_bounds=next((row.latency_bounds for row in rows if row.latency_bounds), ()),
            costs=tuple(bucket for row in rows for bucket in row.costs),
        )


class PointerState(Enum):
    """What a look found of the committed pointer."""

    READABLE = auto()  # or there is none: nothing was committed yet
    MALFORMED = auto()  # it may be written anew
    UNKNOWN = auto()  # it could not be read, or a newer hotslot wrote it: nothing that needs it is decided


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a decision depends on besides the record and the rules; read anew for every step."""

    now: datetime  # of the wall clock: for people, and clamped for the time away
    elapsed_seconds: float  # monotonic, since the step before; 0 in the first step of a process
    is_first: bool  # this process has not written anything yet
    fresh_id: str  # id of an update that starts in this step
    jitter: float  # drawn evenly from 0 to 1
    server: ServerState | None  # None: it cannot be reached
    pointer: Installed | None  # the model's row in the committed pointer; None if it has none
    pointer_state: PointerState = PointerState.READABLE
    golden: GoldenFacts = GoldenFacts("")
    sealed: frozenset[str] = frozenset()  # bundle digests on disk
    # What this build would make of the committed source, if its files are kept; empty if they are not.
    committed_converts_to: str = ""
    free_bytes: int = -1  # of the state folder's disk; -1: not known
    command: OperatorCommand | None = None  # the oldest in the queue
    boot_id: str = ""  # another one after each start of the machine; empty: not known

    @property
    def pointer_is_readable(self) -> bool:
        """Whether `pointer` is what the file says."""
        return self.pointer_state is PointerState.READABLE

    def has_machine_restarted(self, boot_id: str) -> bool:
        """Whether the machine was started again since it had this boot id.

        Most often that is a power cut, which blames nothing; if it repeats in trials, the candidate may cause it.
        """
        return bool(boot_id and self.boot_id) and boot_id != self.boot_id

    @property
    def is_off_card(self) -> bool:
        """Whether the CPU answers, although the server has another device."""
        server = self.server
        if server is None or server.active is None or server.active.device != CPU_DEVICE:
            return False
        return any(row.device != CPU_DEVICE for row in server.devices)
