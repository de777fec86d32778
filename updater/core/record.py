"""What the updater remembers of one model: durable, and enough to go on after any crash.

Nothing in it depends on a clock that may jump: how long something has lasted is a sum of monotonic
seconds, kept up by `apply_result`. Times of the wall clock stand here for people only, with one
exception that is clamped: how long the updater was away (`written_at`).
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from common.bundle import Origin
from updater.core.breaker import Breaker, BreakerName
from updater.core.costs import CostBucket


@dataclass(frozen=True, slots=True)
class Measured:
    """One number that was held against a threshold."""

    name: str  # stable, for example "accuracy"
    candidate: float
    active: float | None  # None where there is nothing to compare with
    threshold: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Differing:
    """An item on which the candidate and the active model differ, or the candidate is wrong."""

    item: str
    text: str
    expected: str  # empty if nothing was expected
    active: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a verdict fell as it did."""

    measured: tuple[Measured, ...] = ()
    differing: tuple[Differing, ...] = ()  # the first ones
    on_probes: bool = False


class Stage(StrEnum):
    """Where an update stands; `…ING` passes by itself."""

    IDLE = "IDLE"  # nothing to do
    STAGING = "STAGING"  # its files are being fetched
    VERIFYING = "VERIFYING"  # its files are being checked, converted and sealed
    GATING = "GATING"  # it is loaded and proven on golden answers
    ACTIVATING = "ACTIVATING"  # it is being swapped in
    OBSERVING = "OBSERVING"  # it answers on trial
    COMMITTING = "COMMITTING"  # it is being made permanent
    ROLLING_BACK = "ROLLING_BACK"  # what is committed is being put back
    HELD = "HELD"  # a person or a breaker must decide; what serves is untouched


class UpdateKind(StrEnum):
    """Why an update runs."""

    RELEASE = "RELEASE"  # the hub has something newer
    REQUESTED = "REQUESTED"  # an operator named a revision
    RECONVERT = "RECONVERT"  # this build converts the committed source otherwise
    ROLLBACK = "ROLLBACK"  # an operator goes back to the previous committed revision
    REVERT = "REVERT"  # what is committed no longer loads: back to the last that did
    FAILBACK = "FAILBACK"  # what is committed goes back to the device that ran out of memory


class Outcome(StrEnum):
    """How an update ended."""

    COMMITTED = "COMMITTED"  # it serves for good
    REFUSED = "REFUSED"  # refused before a caller met it
    ROLLED_BACK = "ROLLED_BACK"  # it served on trial, or for good, and was taken back
    ABANDONED = "ABANDONED"  # stopped without blame


class HeldFor(StrEnum):
    """What a person has to decide about."""

    APPROVAL = "APPROVAL"  # policy asks a person
    AGREEMENT = "AGREEMENT"  # it answers otherwise than the active model
    NOISE = "NOISE"  # it looks worse, but the golden set is too small to tell
    SLOWER = "SLOWER"  # it costs more device time, or answers later, than the active model
    NO_GOLDEN = "NO_GOLDEN"  # there is no golden set to prove it on
    GOLDEN_UNUSABLE = "GOLDEN_UNUSABLE"  # empty, unreadable or of another task
    DOES_NOT_FIT = "DOES_NOT_FIT"  # memory
    INCONCLUSIVE = "INCONCLUSIVE"  # the gate or the observation came to no verdict
    CONVERSION = "CONVERSION"  # this build's conversion of the committed source fails
    SERVER_CRASHED = "SERVER_CRASHED"  # the server died too often during a first install
    TAKEN_BACK = "TAKEN_BACK"  # somebody else ended the trial
    COMMITTED_BROKEN = "COMMITTED_BROKEN"  # what was committed no longer loads
    STUCK = "STUCK"  # too many steps, or a stage took too long


# What an operator may approve: never what failed verification, and nothing that is broken.
APPROVABLE = frozenset(
    {
        HeldFor.APPROVAL,
        HeldFor.AGREEMENT,
        HeldFor.NOISE,
        HeldFor.SLOWER,
        HeldFor.NO_GOLDEN,
        HeldFor.GOLDEN_UNUSABLE,
    }
)
# Holds about one candidate: a newer revision, or an operator's other choice, takes its place.
SUPERSEDABLE = APPROVABLE | {HeldFor.DOES_NOT_FIT, HeldFor.INCONCLUSIVE, HeldFor.CONVERSION, HeldFor.TAKEN_BACK}


class EndsIn(StrEnum):
    """What a rollback leads to, decided when it begins."""

    IDLE = "IDLE"  # over: the outcome says how
    RETRY = "RETRY"  # without blame: the sealed bundle is gated and tried again
    HELD = "HELD"  # a person must decide


@dataclass(frozen=True, slots=True)
class Installed:
    """Something that was committed."""

    revision: str  # for people
    source_digest: str
    bundle_digest: str
    origin: Origin = Origin.UPDATE


@dataclass(frozen=True, slots=True)
class Counts:
    """What the server had counted of a revision at some moment."""

    answered: int = 0
    failed: int = 0  # events, a runner's death being one
    not_finite: int = 0
    out_of_memory: int = 0
    restarts: int = 0  # deaths that count against it
    latency: tuple[int, ...] = ()  # answers a bucket, in the server's order
    latency_bounds: tuple[float, ...] = ()  # seconds, upper, of all buckets but the last; as the server sends them
    costs: tuple[CostBucket, ...] = ()


@dataclass(frozen=True, slots=True)
class GateKey:
    """What a gate's verdict depends on; with the same key it is not run again."""

    bundle_digest: str
    golden_digest: str  # empty: built-in probes
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a rollback that is under way shall end."""

    ends_in: EndsIn
    outcome: Outcome = Outcome.ABANDONED
    held_for: HeldFor | None = None
    blamed: bool = False  # what was tried has failed; a return tells the device breaker


@dataclass(frozen=True, slots=True)
class Update:
    """The update under way, or the one that is HELD."""

    update_id: str
    kind: UpdateKind
    revision: str
    started_at: datetime  # for people
    source_digest: str = ""  # empty before it is known
    bundle_digest: str = ""  # empty before it is sealed
    device: str = ""  # that it is loaded on; empty: the active model's
    load_id: str = ""  # the server's name of its load; empty while there is none
    forced: bool = False  # an operator named the revision
    approved: bool = False  # an operator approved this source digest
    may_be_slower: bool = False  # an operator approved it when it was HELD as slower
    attempts: int = 0  # of this stage's effect that failed without blame
    crashes: int = 0  # lives of the server that ended while it was on trial
    steps: int = 0  # stages entered and starts of the updater; too many end in HELD
    fresh_staging: bool = False  # what was staged did not verify: fetched once more from nothing
    stage_seconds: float = 0.0  # spent in this stage, over all lives of the updater
    retry_in_seconds: float = 0.0  # to wait before the effect is tried again
    server_incarnation: str = ""  # the server's life at activation
    orderly: bool = False  # the server, or this updater, was seen to stop in good order during the trial
    at_activation: Counts = Counts()  # of this bundle, before the trial: counted from here
    probes_good: int = 0
    probes_bad: int = 0
    on_probes: bool = False  # gated or observed on probes, not on traffic
    gate_passed: GateKey | None = None
    ending: Ending | None = None  # while ROLLING_BACK or HELD
    reason: str = ""  # for machines: of the refusal, rollback or hold
    message: str = ""  # for people

    @property
    def installed(self) -> Installed:
        """What it becomes when it is committed."""
        return Installed(self.revision, self.source_digest, self.bundle_digest)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A source digest that is never activated again, until it is released."""

    source_digest: str
    revision: str  # for people
    reason: str  # for machines
    since: datetime  # for people


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What a version was when it was first fetched whole; another digest under it is an alarm."""

    version: str  # in its one form, without prefix
    source_digest: str


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of the hub."""

    seconds_to_poll: float = 0.0
    polls: int = 0  # how often the hub has answered
    last_polled_at: datetime | None = None  # for people
    listing: str = ""  # digest of what the hub listed last
    changed_at: datetime | None = None  # for people: when the listing was last another one
    highest: str = ""  # highest release that the hub listed, allowed or not
    highest_at: datetime | None = None  # for people: when it was first listed
    newest: str = ""  # newest revision that policy allows; empty if none is newer
    message: str = ""  # for people: why the newest is not taken
    alarms: tuple[str, ...] = ()  # "version source_digest" that were reported


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is committed does not answer; since when, in the server's own counts."""

    server_incarnation: str
    restarts: int  # of the slot, when the trouble was first seen
    failed_loads: int = 0  # that this updater has asked for
    retry_in_seconds: float = 0.0  # to wait before it is loaded again


@dataclass(frozen=True, slots=True)
class CpuFallback:
    """The server keeps the model off a device, because memory ran out there."""

    device: str  # that ran out, for example "cuda:0"
    fallback_device: str  # that is used instead
    bundle_digest: str  # of the bundle that met it
    since: datetime  # of the server's wall clock: for people, and to tell one fallback from the next
    reason: str = ""  # for machines: "OUT_OF_MEMORY" or "DOES_NOT_FIT"


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """All of it, for one model."""

    model: str
    stage: Stage = Stage.IDLE
    update: Update | None = None
    committed: Installed | None = None
    previous: Installed | None = None  # what was committed before it, kept on disk
    min_version: str = ""  # highest revision ever committed; never goes down
    quarantine: tuple[Quarantined, ...] = ()
    blocked: tuple[str, ...] = ()  # bundle digests that failed while their source did not
    known: tuple[KnownVersion, ...] = ()
    unquarantined: tuple[str, ...] = ()  # source digests let out of quarantine: may be tried at the floor
    approved: tuple[str, ...] = ()  # source digests
    paused: bool = False
    pause_reason: str = ""
    requested_revision: str = ""  # revision that an operator asked for and the hub was not yet asked about
    hub: Breaker = field(default_factory=lambda: Breaker(BreakerName.HUB))
    activation: Breaker = field(default_factory=lambda: Breaker(BreakerName.ACTIVATION))
    device: Breaker = field(default_factory=lambda: Breaker(BreakerName.DEVICE))
    cpu_fallback: CpuFallback | None = None  # that the device breaker has opened for
    failure_ages: tuple[float, ...] = ()  # seconds since each failed update of the last hour
    watch: Watch = Watch()
    warm_seconds_left: float = 0.0  # how long the previous slot is still kept warm
    has_garbage: bool = True  # something may be collected
    trouble: Trouble | None = None
    written_at: datetime | None = None  # when it was last written

    @property
    def known_digests(self) -> dict[str, str]:
        """Version → source digest."""
        return {row.version: row.source_digest for row in self.known}

    def is_quarantined(self, source_digest: str) -> bool:
        """Whether a source digest must not be activated."""
        return any(row.source_digest == source_digest for row in self.quarantine)

    def with_update(self, **changes: object) -> "ModelRecord":
        """The same, with the update under way changed.

        Raises:
            RuntimeError: there is none.
        """
        return replace(self, update=replace(self.under_way, **changes))  # type: ignore[arg-type]

    @property
    def under_way(self) -> Update:
        """The update under way.

        Raises:
            RuntimeError: there is none.
        """
        if self.update is None:
            raise RuntimeError(f"no update is under way in {self.stage}")
        return self.update


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for the audit trail."""

    at: datetime
    model: str
    stage: Stage
    name: str  # stable, in past tense, for example "gate_refused"
    message: str  # a sentence for people
    update: Update | None = None  # as it stood then
    outcome: Outcome | None = None  # set by the last event of an update
    evidence: Evidence | None = None
