"""The ports of the updater: everything outside of it that it reads or changes. No implementation.

All ports are called from the model's one thread, and block at most for the given deadline. A port that fails raises
`EffectFailed`, which `perform` turns into the result `EffectFailure`; any other exception is a bug.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from common.bundle import HubLocation, Provenance
from updater.core.effects import EffectFailure, FailureKind, ShadowCopies
from updater.core.facts import (
    GoldenFacts,
    Release,
    ServerState,
)
from updater.core.golden import GateAnswers
from updater.core.record import Event, Installed, ModelRecord

MAX_PIECE_BYTES = 1 << 20  # of what `Hub.read` yields at once


class EffectFailed(Exception):
    """A port has failed; carries the result."""

    def __init__(self, failure: EffectFailure) -> None:
        super().__init__(f"{failure.reason}: {failure.message}")
        self.failure = failure

    @classmethod
    def transient(cls, reason: str, message: str, retry_after_seconds: float = 0.0) -> Self:
        """The same may succeed later."""
        return cls(EffectFailure(FailureKind.TRANSIENT, reason, message, retry_after_seconds))

    @classmethod
    def permanent(cls, reason: str, message: str) -> Self:
        """The revision is at fault: the same fails again."""
        return cls(EffectFailure(FailureKind.PERMANENT, reason, message))

    @classmethod
    def denied(cls, reason: str, message: str) -> Self:
        """A setting or a permission must be changed, here or on the hub."""
        return cls(EffectFailure(FailureKind.DENIED, reason, message))

    @classmethod
    def not_ready(cls, reason: str, message: str) -> Self:
        """The revision is incomplete on the hub."""
        return cls(EffectFailure(FailureKind.NOT_READY, reason, message))

    @classmethod
    def inconclusive(cls, reason: str, message: str) -> Self:
        """The gate or a probe reached no verdict."""
        return cls(EffectFailure(FailureKind.INCONCLUSIVE, reason, message))


class LinkBroken(EffectFailed):
    """The connection to the hub ended early; the rest may be requested at once."""


class Skipped(bytes):
    """An empty piece for bytes that a hub sent before the requested offset, because it ignores Range.

    Attributes:
        skipped_bytes: how many; they count for the speed alone.
    """

    skipped_bytes = 0

    @classmethod
    def of(cls, count: int) -> Self:
        """A piece for so many bytes."""
        piece = cls()
        piece.skipped_bytes = count
        return piece


class JournalUnusable(Exception):
    """The journal cannot be read or trusted, or is of a newer schema: updates stop, serving goes on."""


class Hub(Protocol):
    """A hub that publishes revisions. Its content is untrusted and unchecked."""

    @property
    def place(self) -> HubLocation:
        """The hub and the repository; recorded in the bundles that are converted from it."""
        ...

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """Names of all tags and branches that could be a release, in any order."""
        ...

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """List one revision. If it does not exist: EffectFailed(PERMANENT, "REVISION_UNKNOWN")."""
        ...

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """The bytes of one file from an offset, in pieces of at most MAX_PIECE_BYTES; the caller counts them.

        For bytes before the offset: `Skipped`. A connection that ends in the middle: LinkBroken.
        """
        ...


class Control(Protocol):
    """The server's slots of one model, over its control socket.

    Reasons of failure are those of control.v1. Refusals map so: GENERATION_CONFLICT, DRAINING,
    NO_FREE_SLOT, LOAD_YIELDED, LOAD_UNKNOWN, NOT_LOADED, NOT_ON_TRIAL, SLOT_IN_USE and a server that
    cannot be reached (SERVER_UNREACHABLE) are TRANSIENT; LOAD_FAILED, LOAD_STALLED, DOES_NOT_FIT,
    OUT_OF_MEMORY (both with the numbers of bytes, if the server reports them), BUNDLE_UNKNOWN, BUNDLE_BROKEN,
    BUNDLE_FOREIGN are PERMANENT.
    """

    def state(self, deadline_seconds: float) -> ServerState:
        """Call GetStatus; returns the fields that decisions use."""
        ...

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        """Call LoadSlot and wait until the load ends; returns the load id."""
        ...

    def activate(
        self,
        load_id: str,
        trial_lease_seconds: float,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
        *,
        percent: float | None = None,
        copies: ShadowCopies | None = None,
    ) -> None:
        """Call ActivateSlot: begin a trial, extend its lease, or activate the previous slot again (lease 0)."""
        ...

    def copy_requests(
        self,
        load_id: str,
        copies: ShadowCopies,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
    ) -> None:
        """Call SetTraffic: a candidate answers copies of requests."""
        ...

    def set_percent(
        self, load_id: str, percent: float, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> None:
        """Call SetTraffic: the trial gets another percentage of the requests."""
        ...

    def commit(self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float) -> None:
        """Call CommitSlot."""
        ...

    def retire(
        self,
        load_id: str,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
        *,
        gap_lease_seconds: float | None = None,
    ) -> None:
        """Call RetireSlot."""
        ...


class Golden(Protocol):
    """The golden set of one model; sends its questions, or built-in probes, to slots."""

    def facts(self) -> GoldenFacts:
        """The set as it is now; cheap, since every step calls it."""
        ...

    def run(self, load_id: str, active_load_id: str, digest: str, deadline_seconds: float) -> GateAnswers:
        """Send all items of the set with this digest to both slots; empty digest: the built-in probes.

        If the set has changed meanwhile: EffectFailed(INCONCLUSIVE, "GOLDEN_CHANGED"). If a slot was
        emptied: EffectFailed(TRANSIENT).
        """
        ...

    def probe(self, load_id: str, previous_load_id: str, items: int, deadline_seconds: float) -> tuple[int, int, int]:
        """Send some items to one slot; returns how many were answered, failed, and failed by NaN.

        Items that the previous load fails too are void, as at the gate. Items for which the time is too short are left
        out; if it is too short for the first one: EffectFailed(INCONCLUSIVE).
        """
        ...


class Store(Protocol):
    """One model's part of the state folder: staging folders, sealed bundles, kept sources, the committed pointer."""

    def stage(
        self,
        update_id: str,
        release: Release,
        hub: Hub,
        max_bytes: int,
        deadline_seconds: float,
        *,
        is_fresh: bool,
    ) -> str:
        """Fetch the declared files into the update's staging folder; returns their source digest."""
        ...

    def source_folder(self, update_id: str, source_digest: str, *, is_kept: bool) -> Path:
        """Folder of the staged, or the kept, files of a source."""
        ...

    def verify(self, folder: Path, source_digest: str, compatible_with: str) -> Provenance | None:
        """Run the numbered checks on a folder; if the revision is at fault: EffectFailed(PERMANENT).

        Returns the provenance to seal into the bundle; None if it was not recorded.
        """
        ...

    def check_compatible(self, bundle_digest: str, compatible_with: str, *, may_change_labels: bool) -> None:
        """Compare a sealed bundle with the serving one (empty: none); if incompatible: EffectFailed(PERMANENT)."""
        ...

    def notes(self, bundle_digest: str) -> tuple[str, ...]:
        """Notes of a sealed bundle about how the published files were read; empty without any."""
        ...

    def keep_source(self, update_id: str, source_digest: str) -> None:
        """Move the staged files of a sealed source to the kept ones."""
        ...

    def sealed(self) -> frozenset[str]:
        """Digests of all sealed bundles."""
        ...

    def free_bytes(self) -> int:
        """Free bytes of the state folder's disk; -1 if the system does not say."""
        ...

    def converts_to(self, installed: Installed) -> str:
        """Digest of the bundle that this build converts a kept source to, in its precision; empty if it is not kept."""
        ...

    def pointer(self) -> Installed | None:
        """The model's row in the committed pointer.

        If it is malformed: EffectFailed(PERMANENT); if a newer hotslot wrote it: EffectFailed(DENIED); if it cannot be
        read now: OSError.
        """
        ...

    def write_pointer(self, installed: Installed | None) -> None:
        """Replace the model's row, durably; other models' rows stay. Only a malformed pointer is replaced."""
        ...

    def collect(
        self, keep_bundles: frozenset[str], keep_sources: frozenset[str], keep_update_id: str, cap_bytes: int
    ) -> None:
        """Delete unreferenced files."""
        ...


class Converter(Protocol):
    """Converts verified files into a sealed bundle, in a child process with limits."""

    def seal(
        self, folder: Path, revision: str, precision: str, deadline_seconds: float, provenance: Provenance | None
    ) -> str:
        """Convert a folder and seal the bundle; returns its digest. A bundle that is sealed already is not changed."""
        ...


class Journal(Protocol):
    """The durable records and the audit trail."""

    def load(self, model: str) -> ModelRecord | None:
        """The record that was written last.

        Raises:
            JournalUnusable: it cannot be read, is malformed or of a newer schema.
        """
        ...

    def check(self) -> None:
        """Check that the journal is still there; called in each step.

        Raises:
            JournalUnusable: it was deleted or replaced.
            OSError: that cannot be found out now.
        """
        ...

    def write(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Write record and events in one transaction; after it returns they survive a power cut.

        Raises:
            OSError: nothing was written; the caller continues with the previous record.
        """
        ...
