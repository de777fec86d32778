"""Everything that the updater can do to the world, and everything that it can learn by it: two closed sets.

An action is decided from the durable record, which was written before; performing it twice is the
same as once, and every one has a deadline. An action without an effect on the world (`Begin`, `Wait`,
`Enter`, `Adopt`, `ApplyCommand`) is answered by `Done()`.
"""

from dataclasses import dataclass

from updater.core.facts import CommandKind, GoldenFacts, OperatorCommand
from updater.core.record import Installed, Stage
from updater.core.results import (
    Activated,
    Collected,
    Done,
    Failed,
    FaultKind,
    Gated,
    Listed,
    Loaded,
    Probed,
    Result,
    Sealed,
    Shortage,
    Staged,
)
from updater.core.rules import ReleasePolicy

__all__ = [
    "Action",
    "ActivateLoad",
    "ActivatePrevious",
    "Activated",
    "Adopt",
    "ApplyCommand",
    "Begin",
    "CollectGarbage",
    "Collected",
    "CommandKind",
    "CommitLoad",
    "Done",
    "Enter",
    "Failed",
    "FaultKind",
    "Gated",
    "Listed",
    "LoadBundle",
    "Loaded",
    "LookAtHub",
    "OperatorCommand",
    "Probe",
    "Probed",
    "Result",
    "RetireLoad",
    "RunGate",
    "Sealed",
    "Shortage",
    "StageRevision",
    "Staged",
    "VerifyAndSeal",
    "Wait",
    "WritePointer",
]


@dataclass(frozen=True, slots=True)
class Begin:
    """The first step of every life of the updater: what was cut off is counted. No effect."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until time passes, the world changes or somebody asks."""

    seconds: float  # at most
    why: str = ""  # for people and the log


@dataclass(frozen=True, slots=True)
class Enter:
    """Go to another stage on what the facts say. No effect."""

    stage: Stage
    reason: str = ""  # for machines
    message: str = ""  # for people


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take over a committed pointer that somebody made before this record knew of any. No effect."""

    installed: Installed


@dataclass(frozen=True, slots=True)
class ApplyCommand:
    """Do what an operator asks for, as far as the record goes. No effect."""

    command: OperatorCommand


@dataclass(frozen=True, slots=True)
class LookAtHub:
    """Ask the hub which revisions there are, and list those that may matter.

    Perform: `names = hub.revisions()`, then `hub.release(name)` for each of
    `watch.worth_listing(names, action)`. Answer: `Listed`.
    """

    policy: ReleasePolicy
    min_version: str
    committed_revision: str
    known_bad: tuple[str, ...] = ()  # revisions in quarantine: not worth listing
    only: str = ""  # one named revision, whatever the policy; empty: by policy
    deadline_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class StageRevision:
    """Fetch a revision's declared files into this update's staging folder, bounded and resumable.

    Perform: list again before and after; another listing than `source_digest` says is
    `Failed(NOT_READY, "LISTING_CHANGED")`. Answer: `Staged`.
    """

    update_id: str
    revision: str
    source_digest: str  # as listed; empty if a listing of this hub cannot tell
    is_fresh: bool  # drop what was fetched before
    max_bytes: int
    deadline_seconds: float = 7200.0


@dataclass(frozen=True, slots=True)
class VerifyAndSeal:
    """Verify what was staged (the numbered list), convert it and seal the bundle.

    For a new conversion of what is committed, the kept source files are taken instead. Sealed
    already: the same answer at once. Answer: `Sealed`. What the content is to blame for is
    `Failed(PERMANENT)`; reason `CONTENT_MISMATCH` if bytes are not what the listing says.
    """

    update_id: str
    revision: str
    source_digest: str
    precision: str  # in which the server's device computes
    compatible_with: str  # bundle digest that serves; its task must be the same; empty if none serves
    is_kept_source: bool  # convert the kept files of this source digest
    deadline_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class LoadBundle:
    """Load a bundle into the free slot and wait until it is loaded. Answer: `Loaded`."""

    bundle_digest: str
    device: str  # empty: the active slot's
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class RunGate:
    """Ask the candidate and the active slot the golden items, or the built-in probes. Answer: `Gated`.

    Cut off in the middle it has not run.
    """

    load_id: str
    active_load_id: str  # empty if nothing serves
    golden: GoldenFacts | None  # None: built-in probes
    deadline_seconds: float = 1800.0


@dataclass(frozen=True, slots=True)
class ActivateLoad:
    """Begin a trial of a loaded candidate, or extend its lease. Answer: `Activated`."""

    load_id: str
    trial_lease_seconds: float
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask one slot some items, because no traffic does. Answer: `Probed`."""

    load_id: str
    items: int
    deadline_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class WritePointer:
    """Make the committed pointer say this, durably. None takes the model's row out. Answer: `Done`."""

    installed: Installed | None
    deadline_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class CommitLoad:
    """End a trial for good; the pointer says so already. Answer: `Done`."""

    load_id: str
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class ActivatePrevious:
    """End a trial by putting the previous slot back: the warm rollback. Answer: `Done`."""

    load_id: str  # of the previous slot
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class RetireLoad:
    """Empty a slot that does not answer callers; a first install on trial ends by it. Answer: `Done`."""

    load_id: str
    transaction_id: str
    expected_generation: int
    deadline_seconds: float = 90.0


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Delete bundles, kept sources, staging folders and temporary files that nothing refers to.

    Named ones stay. Of the others the newest may stay while all together are under the cap.
    Answer: `Collected`.
    """

    keep_bundles: frozenset[str]
    keep_sources: frozenset[str]
    keep_update_id: str  # whose staging folder stays; empty: none
    cap_bytes: int
    deadline_seconds: float = 120.0


Action = (
    Begin
    | Wait
    | Enter
    | Adopt
    | ApplyCommand
    | LookAtHub
    | StageRevision
    | VerifyAndSeal
    | LoadBundle
    | RunGate
    | ActivateLoad
    | Probe
    | WritePointer
    | CommitLoad
    | ActivatePrevious
    | RetireLoad
    | CollectGarbage
)
