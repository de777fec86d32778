"""hotslot's folder on disk: staging folders, kept sources, sealed bundles, and the committed pointer.

incoming/<update_id>/   a revision on its way in (see staging.py)
sources/<digest>/       the files of a sealed source, kept so that a newer converter can take them again
bundles/<digest>/       sealed bundles, read-only
staging/                where the conversion writes
committed.json          what a restart loads, written under the lock .committed.lock
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.bundle import (
    Bundle,
    BundleBroken,
    Committed,
    Provenance,
    bundle_folder,
    compute_bundle_digest,
    compute_source_digest,
    is_digest,
    lock_pointer,
    read_bundle,
    read_committed,
    update_pointer,
)
from common.clock import Clock
from common.durable import read_bounded, sync_folder
from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES
from common.sealing import PRECISIONS, ConversionRefused, Convert, ConvertLimits, run_convert
from common.source import ManifestBroken, check_files, read_listing_file
from updater.core import checks
from updater.core.checks import by_reason, refused
from updater.core.ports import Hub, Release
from updater.core.record import Installed
from updater.core.results import FaultKind
from updater.revision import engine_of, parse_object
from updater.status import Progress
from updater.store import garbage
from updater.store.staging import FILES_FOLDER, LISTING_NAME, ORIGIN_NAME, Stager, StagingLimits
from updater.store.state_folder import (
    INCOMING,
    SOURCES,
    disk_failed,
    permanent,
    refuse_trusted_names,
    sealed_with,
    transient,
)
from updater.store.verify import check_compatible, verify

_UPDATE_ID_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

DigestOf = Callable[[Path, str, str], str]
"""Bundle digest that this build makes of (folder of a source, its digest, precision)."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the stores of all models in one state folder have in common."""

    state: Path
    limits: StagingLimits = field(default_factory=StagingLimits)
    known_sections: frozenset[str] = frozenset()  # of configuration.json, beside those of the format


def digest_of_source(folder: Path, source: str, precision: str) -> str:
    """What the shipped converter makes of a source; empty if no engine takes it any more."""
    try:
        row = parse_object(read_bounded(folder / CONFIGURATION, MAX_CONFIG_BYTES), CONFIGURATION)
        engine = engine_of(row)
    except (OSError, ValueError):
        return ""
    return compute_bundle_digest(source, engine.engine, engine.converter, precision)


class BundleStore:
    """One model's view of the folder. From that model's thread only."""

    def __init__(
        self,
        shared: Shared,
        model: str,
        clock: Clock,
        keep_on: Callable[[], None],
        others: Callable[[], garbage.Keep],
        digest_of: DigestOf = digest_of_source,
        progress: Progress | None = None,
    ) -> None:
        """Check the folder's name; nothing is touched.

        Args:
            shared: the folder.
            model: whose row of the pointer it moves.
            clock: measures.
            keep_on: called often in what takes long; raises to stop.
            others: what the other models of this folder refer to.
            digest_of: names what a source would be converted to.
            progress: told how far a transfer is.

        Raises:
            FolderTrusted: see `refuse_trusted_names`.
        """
        refuse_trusted_names(shared.state)
        self._shared = shared
        self._state = shared.state
        self._model = model
        self._clock = clock
        self._keep_on = keep_on
        self._others = others
        self._digest_of = digest_of
        self._progress = progress or Progress()
        self._predicted: tuple[Installed, str] | None = None

    def stage(
        self, update_id: str, release: Release, hub: Hub, max_bytes: int, deadline_seconds: float, *, is_fresh: bool
    ) -> str:
        """Fetch the declared files into the update's staging folder; returns their source digest."""
        ends = self._clock.monotonic() + deadline_seconds
        folder = self._incoming(update_id)
        stager = Stager(folder, release, hub, self._shared.limits, self._clock, ends, self._progress)
        try:
            return stager.run(max_bytes, self._keep_on, is_fresh=is_fresh)
        finally:
            self._progress.clear()

    def source_folder(self, update_id: str, source_digest: str, *, is_kept: bool) -> Path:
        """Where the staged, or the kept, files of a source lie; kept already, they are no longer staged."""
        staged = self._incoming(update_id) / FILES_FOLDER
        if is_kept or (not staged.is_dir() and is_digest(source_digest) and self._kept(source_digest).is_dir()):
            return self._kept(source_digest)
        return staged

    def verify(self, folder: Path, source_digest: str, compatible_with: str) -> Provenance | None:
        """Run the numbered list over a folder; returns what is to be sealed with it."""
        serving = self._whole(compatible_with)
        try:
            listing = folder.parent / LISTING_NAME
            listed = read_listing_file(listing) if folder.name == FILES_FOLDER else None
            check_files(listed or ())
            engine, passed = verify(folder, source_digest, listed, self._keep_on, self._shared.known_sections)
        except FileNotFoundError as error:
            raise refused(checks.HASHES, "CONTENT_MISMATCH", "what was staged is gone") from error
        except ManifestBroken as error:
            raise refused(checks.HASHES, "CONTENT_MISMATCH", f"what was listed is damaged: {error}") from error
        except OSError as error:
            raise disk_failed(error, "the staged files cannot be read") from error
        if serving is not None and engine.task.value != serving.task:  # before work is put into it
            message = f"its task is {engine.task.value!r}, what serves does {serving.task!r}"
            raise refused(checks.COMPATIBLE, "TASK_CHANGED", message)
        known = None if serving is None or serving.source_digest != source_digest else serving.provenance
        return sealed_with(folder.parent / ORIGIN_NAME, passed, self._clock.now(), known)

    def check_compatible(self, bundle_digest: str, compatible_with: str) -> None:
        """Compare a sealed bundle with what serves."""
        serving = self._whole(compatible_with)
        if serving is None or bundle_digest == compatible_with:
            return
        folders = [bundle_folder(self._state, digest) for digest in (bundle_digest, compatible_with)]
        try:
            check_compatible(self.bundle(bundle_digest), folders[0], serving, folders[1])
        except (BundleBroken, ValueError) as error:
            raise transient("BUNDLE_BROKEN", f"what was sealed cannot be compared: {error}") from error
        except OSError as error:
            raise disk_failed(error, "what was sealed cannot be compared") from error

    def keep_source(self, update_id: str, source_digest: str) -> None:
        """Move the staged files of a sealed source to the kept ones; harmless when repeated."""
        staged, kept = self._incoming(update_id) / FILES_FOLDER, self._kept(source_digest)
        try:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            if staged.is_dir() and not kept.exists():
                staged.rename(kept)
                sync_folder(kept.parent)
            garbage.drop(self._incoming(update_id))
        except OSError as error:
            raise disk_failed(error, "the source files cannot be kept") from error

    def sealed(self) -> frozenset[str]:
        """Digests of all sealed bundles."""
        return garbage.sealed_digests(self._state)

    def converts_to(self, installed: Installed) -> str:
        """Bundle digest that this build makes of a kept source in its precision; empty if it is not kept."""
        if self._predicted is None or self._predicted[0] != installed:
            self._predicted = (installed, self._predict(installed))
        return self._predicted[1]

    def pointer(self) -> Installed | None:
        """The model's row in the committed pointer."""
        try:
            row = read_committed(self._state).get(self._model)
        except BundleBroken as error:
            raise permanent("POINTER_BROKEN", str(error)) from error
        except OSError as error:
            raise disk_failed(error, "the committed pointer cannot be read") from error
        return None if row is None else Installed(row.revision, row.source_digest, row.bundle_digest, row.origin)

    def write_pointer(self, installed: Installed | None) -> None:
        """Replace the model's row, durably; the rows of other models stay."""
        row = None if installed is None else _row(self._model, installed)
        try:
            # The pointer is derived: each model's journal has its row, so a malformed one is made anew by all.
            update_pointer(self._state, self._model, lambda _: row, replace_broken=True)
        except OSError as error:
            raise disk_failed(error, "the committed pointer cannot be written") from error
        self._predicted = None

    def collect(
        self, keep_bundles: frozenset[str], keep_sources: frozenset[str], keep_update_id: str, cap_bytes: int
    ) -> tuple[int, int]:
        """Delete what nothing refers to; returns bytes freed and bytes still used."""
        updates = frozenset({keep_update_id} - {""})
        keep = self._others() | garbage.Keep(keep_bundles, keep_sources, updates)
        try:
            with lock_pointer(self._state):  # what the pointer names stays, whoever wrote it
                rows = read_committed(self._state).values()
                named = garbage.Keep(
                    frozenset(row.bundle_digest for row in rows), frozenset(row.source_digest for row in rows)
                )
                return garbage.collect(self._state, keep | named, cap_bytes, self._clock.now(), self._keep_on)
        except BundleBroken as error:
            raise permanent("POINTER_BROKEN", str(error)) from error
        except OSError as error:
            raise disk_failed(error, "what nobody needs cannot be deleted") from error

    def bundle(self, digest: str) -> Bundle:
        """What a sealed bundle says of itself.

        Raises:
            BundleBroken: it is not there, or not whole.
        """
        return read_bundle(bundle_folder(self._state, digest))

    def _incoming(self, update_id: str) -> Path:
        if not update_id or not _UPDATE_ID_CHARS.issuperset(update_id):
            raise RuntimeError("an update's id is not safe as a folder's name")
        return self._state / INCOMING / update_id

    def _kept(self, source_digest: str) -> Path:
        if not is_digest(source_digest):
            raise RuntimeError("a source digest is not safe as a folder's name")
        return self._state / SOURCES / source_digest.replace(":", "-")

    def _predict(self, installed: Installed) -> str:
        if not is_digest(installed.source_digest):
            return ""
        kept = self._kept(installed.source_digest)
        if not kept.is_dir():
            return ""
        try:
            precision = self.bundle(installed.bundle_digest).precision
        except BundleBroken:
            return ""
        return self._digest_of(kept, installed.source_digest, precision)

    def _whole(self, digest: str) -> Bundle | None:
        """What serves; None if nothing does, or if it is not whole any more: nothing to be compatible with."""
        try:
            return self.bundle(digest) if digest else None
        except BundleBroken:
            return None


def _row(model: str, installed: Installed) -> Committed:
    return Committed(model, installed.bundle_digest, installed.source_digest, installed.revision, installed.origin)


# What befell the child says nothing about the revision.
_BLAMELESS = frozenset({"CONVERT_FAILED", "IO_FAILED", "SOURCE_UNREADABLE", "TIME_LIMIT"})


class ChildConverter:
    """Converts into one state folder."""

    def __init__(self, state: Path, limits: ConvertLimits, convert: Convert = run_convert) -> None:
        """Prepare; `limits.timeout_seconds` is lowered to each call's deadline."""
        self._state = state
        self._limits = limits
        self._convert = convert

    def seal(
        self, folder: Path, revision: str, precision: str, deadline_seconds: float, provenance: Provenance | None
    ) -> str:
        """Convert and seal; returns the bundle digest; at once if it is sealed already."""
        limits = replace(self._limits, timeout_seconds=min(deadline_seconds, self._limits.timeout_seconds))
        stored = precision if precision in PRECISIONS else PRECISIONS[0]  # a runner casts
        try:
            verified = _verified(folder)
            bundle = self._convert(
                folder, self._state, revision, limits, stored, digest=verified, provenance=provenance
            )
        except ConversionRefused as error:
            if error.reason in checks.UNCHANGED.reasons:
                raise refused(checks.UNCHANGED, error.reason, str(error), FaultKind.TRANSIENT) from error
            if error.reason in _BLAMELESS:
                raise transient(error.reason, str(error)) from error
            raise by_reason(error.reason, str(error)) from error  # check 14
        except OSError as error:
            raise disk_failed(error, "the bundle cannot be written") from error
        return bundle.bundle_digest


def _verified(folder: Path) -> str:
    """Source digest of what was verified in this folder, which stands beside the files or is their folder's name.

    Empty if neither says it.
    """
    kept = folder.name.replace("sha256-", "sha256:", 1)
    if is_digest(kept):
        return kept
    listing = folder.parent / LISTING_NAME
    return compute_source_digest(read_listing_file(listing)) if listing.exists() else ""
