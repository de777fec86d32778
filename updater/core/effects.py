"""Effects, which are all actions of the updater outside of its process, and their results: two closed sets.

An effect is decided from the durable record, which was written before. It is idempotent and has a deadline. Its result
is a record of what was found, None if there is nothing to report, or an `EffectFailure`.
"""

from dataclasses import dataclass
from enum import StrEnum

from common import reasons
from updater.core.facts import GoldenFacts, Release
from updater.core.golden import GateAnswers
from updater.core.record import Installed
from updater.core.rules import ReleasePolicy


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause: nothing to do until time passes, the facts change or a command comes."""

    seconds: float  # at most
    why: str = ""  # for people and the log


@dataclass(frozen=True, slots=True)
class PollHub:
    """List the hub's revisions, and the files of those that policy allows.

    Perform: `names = hub.revisions()`, then `hub.release(name)` for each of
    `choice.select_names(names, effect)`. Result: `Listed`.
    """

    policy: ReleasePolicy
    min_version: str
    committed_revision: str
    quarantined_revisions: tuple[str, ...] = ()  # revisions in quarantine: not worth listing
    only: str = ""  # what an operator requests, whatever the policy; empty: by policy
    recognise: str = ""  # source digest of the committed revision, to be found among the releases; empty: it is known
    deadline_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class StageRevision:
    """Fetch a revision's declared files into this update's staging folder, bounded and resumable.

    Perform: list again before and after; if the listing's digest is not `source_digest` the result is
    `EffectFailure(NOT_READY, "LISTING_CHANGED")`. Result: `Staged`.
    """

    update_id: str
    revision: str  # for people; `versions.hub_name` is its name on the hub
    source_digest: str  # as listed; empty if this hub's listing has no digests
    is_fresh: bool  # drop what was fetched before
    max_bytes: int
    deadline_seconds: float = 7200.0


@dataclass(frozen=True, slots=True)
class VerifyAndSeal:
    """Run the numbered checks on the staged files, convert them and seal the bundle.

    A reconversion of the committed revision uses the kept source files instead. If the bundle is sealed already, the
    same result is returned at once. Result: `Sealed`. If the content is at fault: `EffectFailure(PERMANENT)`; if the
    bytes differ from the listing: `EffectFailure(TRANSIENT)` with one of `checks.MISMATCH_REASONS`.
    """

    update_id: str
    revision: str
    source_digest: str
    precision: str  # in which the server's device computes
    compatible_with: str  # bundle digest that serves; its task must be the same; empty if none serves
    is_kept_source: bool  # convert the kept files of this source digest
    may_change_labels: bool = False  # a person has approved other labels than the serving bundle's
    deadline_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class LoadBundle:
    """Load a bundle into the free slot and wait until it is loaded. Result: `Loaded`."""

    bundle_digest: str
    device: str  # empty: the active slot's
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class RunGate:
    """Send all golden questions, or the built-in probes, to the candidate and the active slot. Result: `Gated`.

    An interrupted gate counts as not run.
    """

    load_id: str
    active_load_id: str  # empty if nothing serves
    golden: GoldenFacts | None  # None: built-in probes
    deadline_seconds: float = 1800.0


@dataclass(frozen=True, slots=True)
class ShadowCopies:
    """Which requests a second slot answers too, for comparison."""

    share: float  # of the requests
    busy_share: float  # of its time that the second slot may spend on them
    max_seconds: float = 0.0  # 0: without limit


@dataclass(frozen=True, slots=True)
class ActivateLoad:
    """Begin a trial of a loaded candidate, or extend its lease. Result: `Activated`."""

    load_id: str
    trial_lease_seconds: float
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0
    percent: float | None = None  # of the requests that it gets; None: all, or as before
    copies: ShadowCopies | None = None  # None: nothing is compared, or as before


@dataclass(frozen=True, slots=True)
class CopyRequests:
    """Have a candidate answer copies of requests, before it answers callers. Result: None."""

    load_id: str
    copies: ShadowCopies
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class SetPercent:
    """Change the percentage of the requests that a trial gets. Result: None."""

    load_id: str
    percent: float
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Send items to one slot, one after the other, in place of missing traffic. Result: `Probed`."""

    load_id: str
    previous_load_id: str  # what it fails too blames the item; empty: there is none
    items: int  # at most: none begins that would probably not end in time
    deadline_seconds: float  # before the trial's lease ends


@dataclass(frozen=True, slots=True)
class WritePointer:
    """Write the model's row of the committed pointer, durably; None removes it. Result: None."""

    installed: Installed | None
    deadline_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class CommitLoad:
    """Commit the trial at the server; the pointer is written already. Result: None."""

    load_id: str
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class ActivatePrevious:
    """End a trial by activating the previous slot: the warm rollback. Result: None."""

    load_id: str  # of the previous slot
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class RetireLoad:
    """Retire a load that does not answer callers; it also ends the trial of a first install. Result: None."""

    load_id: str
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 90.0
    gap_lease_seconds: float | None = None  # may be the active slot's; after so long without a command it returns


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Delete unreferenced bundles, kept sources, staging folders and temporary files.

    The named ones are kept, and the newest of the others as long as the total size is below the cap.
    """

    keep_bundles: frozenset[str]
    keep_sources: frozenset[str]
    keep_update_id: str  # whose staging folder is kept; empty: none
    cap_bytes: int
    deadline_seconds: float = 120.0


Effect = (
    PollHub
    | StageRevision
    | VerifyAndSeal
    | LoadBundle
    | RunGate
    | ActivateLoad
    | CopyRequests
    | SetPercent
    | Probe
    | WritePointer
    | CommitLoad
    | ActivatePrevious
    | RetireLoad
    | CollectGarbage
)


@dataclass(frozen=True, slots=True)
class Listed:
    """The hub's revisions."""

    names: tuple[str, ...]  # all revisions, as the hub names them
    releases: tuple[Release, ...]  # the listed ones


@dataclass(frozen=True, slots=True)
class Staged:
    """A revision's declared files are in the staging folder; sizes and digests match the listing."""

    source_digest: str
    notes: tuple[str, ...] = ()  # about listed files that are not fetched, for people


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle is sealed."""

    bundle_digest: str
    source_digest: str  # re-computed from the bytes on disk
    notes: tuple[str, ...] = ()  # of the bundle, for people: what was ignored, or read in an unusual place


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load is complete."""

    load_id: str


@dataclass(frozen=True, slots=True)
class Gated:
    """The gate is complete; `gate_verdict.judge` judges the answers."""

    answers: GateAnswers


@dataclass(frozen=True, slots=True)
class Activated:
    """The candidate answers callers on trial."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Counts of answered and failed probes, without those that the previous load fails too."""

    good: int
    bad: int
    not_finite: int = 0  # of the failed ones


class FailureKind(StrEnum):
    """What a failure means for the next attempt."""

    TRANSIENT = "TRANSIENT"  # the same may succeed later: network, disk, another state of the server
    PERMANENT = "PERMANENT"  # the revision is the cause: it will fail again
    NOT_READY = "NOT_READY"  # the revision is not complete on the hub yet: neither an update nor a failure
    INCONCLUSIVE = "INCONCLUSIVE"  # there is no verdict
    DENIED = "DENIED"  # a person must change a permission or a setting; neutral to breakers


MEMORY_REASONS = reasons.SHORTAGES  # of a load or a conversion: planned, and met
# Reasons of failures for which the machine may be to blame as well: it paused, or was busy with something else.
LATE_REASONS = frozenset({reasons.TOO_SLOW, reasons.PREPARE_TIMEOUT})
# The same, of probes and golden questions, whose deadline is ours.
LATE_PROBE_REASONS = LATE_REASONS | {reasons.DEADLINE_EXPIRED, reasons.DEADLINE_TOO_SHORT}


@dataclass(frozen=True, slots=True)
class Shortage:
    """The memory that a load or a conversion lacked, or the disk space."""

    device: str  # empty if the server did not name it, and for disk space
    needed_bytes: int = 0  # 0 if it is not known
    free_bytes: int = -1  # -1 if it is not known


@dataclass(frozen=True, slots=True)
class EffectFailure:
    """The effect was not performed, or not completely."""

    kind: FailureKind
    reason: str  # for machines, UPPER_SNAKE: the other side's reason where it has one
    message: str = ""  # a sentence for people
    retry_after_seconds: float = 0.0  # requested by the other side
    shortage: Shortage | None = None  # of memory or disk space, if that is why


DISK_REASONS = frozenset({"DISK_FULL", "QUOTA_EXCEEDED"})
CONVERTER_REASONS = frozenset({"CONVERT_FAILED", "TIME_LIMIT"})  # it ended without a verdict about the revision


Result = Listed | Staged | Sealed | Loaded | Gated | Activated | Probed | EffectFailure | None
