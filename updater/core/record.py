"""The durable record of one model: enough to continue after any crash.

Durations sum monotonic seconds (`refresh`); wall-clock times are for people, except `written_at`, which is clamped.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from common.bundle import Origin
from updater.core.breaker import Breaker, BreakerName
from updater.core.bridge import Bridge
from updater.core.comparison import ChangeRow, ExpectedChanges, GateKey, LabelPair
from updater.core.counts import ADDED, Counts
from updater.core.known import ComputedDigest, KnownVersion, Replaced
from updater.core.label_mix import LabelMark, LabelMix


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured number and its threshold."""

    name: str  # stable, for example "accuracy"
    candidate: float
    active: float | None  # None where there is nothing to compare with
    threshold: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Differing:
    """A golden item on which the candidate is wrong, or differs from the active model."""

    item: str
    text: str
    expected: str  # empty if nothing was expected
    active: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers and items that a verdict is based on."""

    measured: tuple[Measured, ...] = ()
    differing: tuple[Differing, ...] = ()  # the first `GateRules.max_differing`
    on_probes: bool = False
    notes: tuple[str, ...] = ()  # about how the published files were read, in whole sentences
    changes: tuple[ChangeRow, ...] = ()  # of answers to the same requests, in a trial
    label_pairs: tuple[LabelPair, ...] = ()  # of the golden answers of both models, the most frequent first


class Stage(StrEnum):
    """The stage of an update; it leaves one whose name ends in ING by itself."""

    IDLE = "IDLE"  # nothing to do
    STAGING = "STAGING"  # its files are being fetched
    VERIFYING = "VERIFYING"  # its files are being checked, converted and sealed
    GATING = "GATING"  # it is loaded and judged by golden answers
    SHADOWING = "SHADOWING"  # it answers copies of requests, and no caller
    ACTIVATING = "ACTIVATING"  # its trial is being started
    OBSERVING = "OBSERVING"  # it answers callers on trial
    COMMITTING = "COMMITTING"  # it is being committed
    ROLLING_BACK = "ROLLING_BACK"  # the committed revision is being restored
    HELD = "HELD"  # it waits for a person, or for disk space; the serving model is not changed


class UpdateKind(StrEnum):
    """What started an update."""

    RELEASE = "RELEASE"  # the hub has something newer
    REQUESTED = "REQUESTED"  # an operator named a revision
    RECONVERT = "RECONVERT"  # this build converts the committed source into another bundle
    ROLLBACK = "ROLLBACK"  # an operator goes back to the previous committed revision
    REVERT = "REVERT"  # the committed revision no longer loads: the previous one is restored
    FAILBACK = "FAILBACK"  # the committed revision returns to the device that ran out of memory


class Outcome(StrEnum):
    """How an update ended."""

    COMMITTED = "COMMITTED"  # it is committed
    REFUSED = "REFUSED"  # refused before it answered a caller
    ROLLED_BACK = "ROLLED_BACK"  # it served on trial, and the committed revision was restored
    ABANDONED = "ABANDONED"  # stopped without counting a failure


class HeldFor(StrEnum):
    """The reason why an update is HELD."""

    APPROVAL = "APPROVAL"  # the policy requires approval
    AGREEMENT = "AGREEMENT"  # its answers differ from the active model's
    NOISE = "NOISE"  # it is worse, but not significantly: the golden set is too small
    SLOWER = "SLOWER"  # it needs more device time, or answers later, than the active model, or too late
    CHANGED_ANSWERS = "CHANGED_ANSWERS"  # callers get other answers than the golden set predicts
    LABELS = "LABELS"  # it has other labels than the active model, which callers may depend on
    NO_GOLDEN = "NO_GOLDEN"  # there is no golden set
    GOLDEN_UNUSABLE = "GOLDEN_UNUSABLE"  # empty, unreadable or of another task
    DOES_NOT_FIT = "DOES_NOT_FIT"  # out of memory, beside the serving model
    INCONCLUSIVE = "INCONCLUSIVE"  # the gate or the trial reached no verdict
    CONVERSION = "CONVERSION"  # this build's conversion of the committed source fails
    SERVER_CRASHED = "SERVER_CRASHED"  # the server died too often during a first install
    TAKEN_BACK = "TAKEN_BACK"  # the trial was ended by another client of the server
    COMMITTED_BROKEN = "COMMITTED_BROKEN"  # the committed revision no longer loads
    DISK_FULL = "DISK_FULL"  # there is too little disk space; it goes on when there is enough
    MISMATCH = "MISMATCH"  # the hub has sent other bytes than it lists, for an hour
    STUCK = "STUCK"  # too many steps, or a stage took too long
    SEEN_BEFORE = "SEEN_BEFORE"  # the branch has a content again that was committed and replaced
    FIRST_CONTACT = "FIRST_CONTACT"  # whether it is newer than the committed revision is not known


# What an operator may approve: nothing whose content failed verification, and nothing that is broken.
APPROVABLE = frozenset(
    {
        HeldFor.APPROVAL,
        HeldFor.AGREEMENT,
        HeldFor.NOISE,
        HeldFor.SLOWER,
        HeldFor.CHANGED_ANSWERS,
        HeldFor.LABELS,
        HeldFor.NO_GOLDEN,
        HeldFor.GOLDEN_UNUSABLE,
        HeldFor.SEEN_BEFORE,
        HeldFor.FIRST_CONTACT,
    }
)
# Holds that concern one candidate alone: a newer revision takes its place.
SUPERSEDABLE = APPROVABLE | {
    HeldFor.DOES_NOT_FIT,
    HeldFor.INCONCLUSIVE,
    HeldFor.CONVERSION,
    HeldFor.TAKEN_BACK,
    HeldFor.MISMATCH,
    HeldFor.DISK_FULL,
}


class EndsIn(StrEnum):
    """Where a rollback ends, decided when it begins."""

    IDLE = "IDLE"  # the update is over
    RETRY = "RETRY"  # the sealed bundle is gated and tried again
    HELD = "HELD"  # a person must decide


@dataclass(frozen=True, slots=True)
class Installed:
    """A committed revision."""

    revision: str  # for people
    source_digest: str
    bundle_digest: str
    origin: Origin = Origin.UPDATE
    commit_id: str = field(default="", compare=False)  # for people; the committed pointer does not have it


@dataclass(frozen=True, slots=True)
class Ending:
    """How the rollback under way ends."""

    ends_in: EndsIn
    outcome: Outcome = Outcome.ABANDONED
    held_for: HeldFor | None = None
    blamed: bool = False  # the candidate is at fault; for a failback, the device


@dataclass(frozen=True, slots=True)
class Update:
    """The update under way, or the one that is HELD."""

    update_id: str
    kind: UpdateKind
    revision: str
    started_at: datetime  # for people
    source_digest: str = ""  # empty before it is known
    listing: str = ""  # digest of its listing, if that lacks a hash; then the source digest is known when it is fetched
    commit_id: str = ""  # or its first digits; empty if the hub does not say
    bundle_digest: str = ""  # empty before it is sealed
    device: str = ""  # on which it is loaded; empty: the active model's
    load_id: str = ""  # names its load at the server; empty while there is none
    forced: bool = False  # an operator named the revision
    approved: bool = False  # an operator approved this source digest
    may_be_slower: bool = False  # an operator approved it when it was HELD as slower
    may_change_answers: bool = False  # an operator approved it when it was HELD for changed answers
    attempts: int = 0  # failed attempts of this stage's effect
    crashes: int = 0  # of the server, while it was on trial
    needed_bytes: int = 0  # free disk space that it waits for while it is held; 0: not known
    mismatches: int = 0  # downloads whose bytes were not the listed ones
    steps: int = 0  # stages entered, and starts of the updater; too many end in HELD
    fresh_staging: bool = False  # the staged files were not the listed ones: they are fetched from the beginning
    stage_seconds: float = 0.0  # spent in this stage, restarts of the updater included
    retry_in_seconds: float = 0.0  # wait before the effect is tried again
    server_incarnation: str = ""  # of the server at activation
    boot_id: str = field(default="", metadata=ADDED)  # of the machine's start at activation; empty: not known
    orderly: bool = False  # the server or the updater was stopped orderly during the trial
    at_activation: Counts = field(default_factory=Counts)  # the bundle's counters before the trial
    probes_good: int = 0
    probes_bad: int = 0
    probes_not_finite: int = field(default=0, metadata=ADDED)  # of the bad ones
    on_probes: bool = False  # gated or observed on probes, not on traffic
    gate_passed: GateKey | None = None
    expected_changes: ExpectedChanges | None = None  # of answers, since its gate
    is_shadow_over: bool = False  # an operator wants its trial to begin
    shadow_deaths: int = field(default=0, metadata=ADDED)  # of its runner, while it answered copies of requests
    shadow_slot: int = field(default=-1, metadata=ADDED)  # position of its slot; -1: not known
    slot_deaths: int = field(default=0, metadata=ADDED)  # of that slot's runners, before they were of this load
    percents: tuple[float, ...] = ()  # of the requests that its trial gets, step by step; empty: all
    percent_step: int = 0  # position in `percents`
    ending: Ending | None = None  # while ROLLING_BACK or HELD
    reason: str = ""  # for machines: of the refusal, rollback or hold
    message: str = ""  # for people

    @property
    def percent(self) -> float:
        """Percentage of the requests that its trial is to get now."""
        return self.percents[self.percent_step] if self.percent_step < len(self.percents) else 100.0

    @property
    def has_more_steps(self) -> bool:
        """Whether its trial is to get a larger percentage later."""
        return self.percent_step + 1 < len(self.percents)

    @property
    def installed(self) -> Installed:
        """The committed revision that this update becomes when it is committed."""
        return Installed(self.revision, self.source_digest, self.bundle_digest, commit_id=self.commit_id)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A source digest that is not activated again until an operator takes it out of quarantine."""

    source_digest: str
    revision: str  # for people
    reason: str  # for machines
    since: datetime  # for people
    commit_id: str = ""  # for people


@dataclass(frozen=True, slots=True)
class Republished:
    """A known version that the hub lists with another content now."""

    revision: str  # as the hub names it
    known_digest: str
    listed_digest: str
    since: datetime  # for people: when it was noticed


@dataclass(frozen=True, slots=True)
class Watch:
    """The results of polling the hub."""

    seconds_to_poll: float = 0.0
    polls: int = 0  # how often the hub has answered
    last_polled_at: datetime | None = None  # for people
    listing: str = ""  # digest of the last listing
    changed_at: datetime | None = None  # for people: when the listing last changed
    highest: str = ""  # highest release that the hub listed, allowed or not
    highest_at: datetime | None = None  # for people: when it was first listed
    newest: str = ""  # newest revision that policy allows; empty if none is newer
    message: str = ""  # for people: why the newest is not taken
    alarms: tuple[str, ...] = ()  # "version source_digest" of alarms that were raised
    republished: tuple[Republished, ...] = ()  # known versions that have another content on the hub
    names: int = 0  # revisions that the hub lists
    left_out: int = 0  # of these, names that are not followed: no releases, or other than the branch
    left_out_names: tuple[str, ...] = ()  # the first of them
    contact: str = ""  # branch on which the committed content was seen


@dataclass(frozen=True, slots=True)
class Trouble:
    """The committed revision does not answer: since when, and the server's counters at that time."""

    server_incarnation: str
    restarts: int  # of all slots, when the trouble began
    failed_loads: int = 0  # requested by this updater
    retry_in_seconds: float = 0.0  # wait before it is loaded again


@dataclass(frozen=True, slots=True)
class CpuFallback:
    """The server runs the model on the CPU, because a device ran out of memory."""

    device: str  # that ran out, for example "cuda:0"
    fallback_device: str  # the one in use instead
    bundle_digest: str  # of the bundle that ran out
    since: datetime  # by the server's wall clock: for people, and to distinguish one fallback from the next
    reason: str = ""  # for machines: "OUT_OF_MEMORY" or "DOES_NOT_FIT"


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The whole record of one model."""

    model: str
    stage: Stage = Stage.IDLE
    update: Update | None = None
    committed: Installed | None = None
    previous: Installed | None = None  # the previous committed revision, kept on disk
    min_version: str = ""  # highest release that was ever committed; never lowered
    quarantine: tuple[Quarantined, ...] = ()
    blocked: tuple[str, ...] = ()  # bundle digests that failed although their source is good
    known: tuple[KnownVersion, ...] = ()
    computed: tuple[ComputedDigest, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    # Source digests that an operator has allowed to be tried: taken out of quarantine, or approved before the download.
    unquarantined: tuple[str, ...] = ()
    approved: tuple[str, ...] = ()  # source digests
    former: tuple[str, ...] = ()  # source digests that an earlier build may have computed over fewer files
    paused: bool = False
    pause_reason: str = ""
    requested_revision: str = ""  # by an operator; the hub is polled for it next
    hub: Breaker = field(default_factory=lambda: Breaker(BreakerName.HUB))
    activation: Breaker = field(default_factory=lambda: Breaker(BreakerName.ACTIVATION))
    device: Breaker = field(default_factory=lambda: Breaker(BreakerName.DEVICE))
    cpu_fallback: CpuFallback | None = None  # for which the device breaker has opened
    bridge: Bridge | None = None  # while the committed revision is moved, or has moved, to the CPU for a candidate
    failure_ages: tuple[float, ...] = ()  # seconds since each failed update of the last hour
    watch: Watch = Watch()
    warm_seconds_left: float = 0.0  # until the previous slot is retired
    mix: LabelMix | None = None  # of the committed revision's answers
    mix_before: LabelMix | None = None  # of the revision that was committed before
    mix_mark: LabelMark | None = None  # up to which answers are in `mix`
    mix_distance: float = 0.0  # between the two
    is_mix_changed: bool = False  # it is larger than allowed
    has_garbage: bool = True  # files that nothing refers to may be there
    trouble: Trouble | None = None
    written_at: datetime | None = None  # when it was last written

    @property
    def known_digests(self) -> dict[str, str]:
        """Version → source digest."""
        return {row.version: row.source_digest for row in self.known}

    @property
    def recorded_digests(self) -> frozenset[str]:
        """The source digests by which contents are recognised."""
        known = {*self.known_digests.values(), *(row.source_digest for row in self.quarantine)}
        replaced = {row.source_digest for row in self.replaced}
        return frozenset({*known, *replaced, *self.unquarantined, *self.approved})

    def is_quarantined(self, source_digest: str) -> bool:
        """Whether a source digest must not be activated."""
        return any(row.source_digest == source_digest for row in self.quarantine)

    def is_replaced(self, source_digest: str) -> bool:
        """Whether a content was committed before, and no operator has allowed it since."""
        is_there = any(row.source_digest == source_digest for row in self.replaced)
        return is_there and source_digest not in self.unquarantined

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
    """One event of the audit trail."""

    at: datetime
    model: str
    stage: Stage
    name: str  # stable, in past tense, for example "candidate_refused"
    message: str  # a sentence for people
    update: Update | None = None  # as it stood then
    outcome: Outcome | None = None  # set by the last event of an update
    evidence: Evidence | None = None
