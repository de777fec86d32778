"""What can come of an action: a closed set."""

from dataclasses import dataclass
from enum import StrEnum

from updater.core.facts import Release
from updater.core.golden import GateAnswers


@dataclass(frozen=True, slots=True)
class Done:
    """It is done; there is nothing to tell."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What the hub has."""

    names: tuple[str, ...]  # all revisions, as the hub names them
    releases: tuple[Release, ...]  # the listed ones


@dataclass(frozen=True, slots=True)
class Staged:
    """A revision's declared files lie in the staging folder, each of the size and digest listed."""

    source_digest: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle is sealed."""

    bundle_digest: str
    source_digest: str  # re-computed from the bytes on disk


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load is done."""

    load_id: str


@dataclass(frozen=True, slots=True)
class Gated:
    """The gate was run to its end; what it says of it is decided by `pipeline.gate`."""

    answers: GateAnswers


@dataclass(frozen=True, slots=True)
class Activated:
    """It answers on trial."""

    server_incarnation: str


@dataclass(frozen=True, slots=True)
class Probed:
    """How probes were answered."""

    good: int
    bad: int
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted."""

    freed_bytes: int
    used_bytes: int


class FaultKind(StrEnum):
    """What a failure means for what comes next."""

    TRANSIENT = "TRANSIENT"  # the same may succeed later: network, disk, a world that moved
    PERMANENT = "PERMANENT"  # the revision's fault: it will fail again
    NOT_READY = "NOT_READY"  # the revision is not all there yet: neither an update nor a failure
    INCONCLUSIVE = "INCONCLUSIVE"  # no verdict came of it
    DENIED = "DENIED"  # somebody must change a permission or a setting; neutral to breakers


@dataclass(frozen=True, slots=True)
class Shortage:
    """What a load lacked."""

    device: str  # empty if the server did not say
    needed_bytes: int = 0  # 0 if it is not known
    free_bytes: int = -1  # -1 if it is not known


@dataclass(frozen=True, slots=True)
class Failed:
    """It was not done, or not to the end."""

    kind: FaultKind
    reason: str  # for machines, UPPER_SNAKE: the other side's reason where it has one
    message: str = ""  # a sentence for people
    retry_after_seconds: float = 0.0  # as the other side asked
    shortage: Shortage | None = None  # of memory, if that is why


Result = Done | Listed | Staged | Sealed | Loaded | Gated | Activated | Probed | Collected | Failed
