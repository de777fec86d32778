"""The store of one model: staging, verification, sealing, kept sources and the committed pointer."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import reasons
from common.bundle import (
    Bundle,
    BundleBroken,
    Committed,
    Provenance,
    SchemaTooNew,
    bundle_folder,
    compute_bundle_digest,
    compute_source_digest,
    is_digest,
    lock_pointer,
    read_bundle,
    read_committed,
    read_replaced_digests,
    update_pointer,
)
from common.clock import Clock
from common.durable import read_bounded, sync_folder
from common.engine_files import CONFIGURATION, MAX_CONFIG_BYTES
from common.sealing import Convert, ConvertLimits, run_convert
from common.source import (
    PRECISIONS,
    ConversionRefused,
    ManifestBroken,
    check_files,
    find_source,
    read_listing_file,
)
from updater.core import checks
from updater.core.checks import make_check_failure, make_failure_by_reason
from updater.core.effects import MEMORY_REASONS, EffectFailure, FailureKind, Shortage
from updater.core.facts import Release
from updater.core.ports import EffectFailed, Hub
from updater.core.record import Installed
from updater.revision import parse_json_object, select_engine
from updater.status import Progress
from updater.store import garbage
from updater.store.staging import SpacePlan, Stager, StagingLimits, check_space
from updater.store.state_folder import (
    FILES_FOLDER,
    INCOMING,
    LISTING_NAME,
    ORIGIN_NAME,
    SOURCES,
    build_provenance,
    check_state_path,
    classify_disk_error,
)
from updater.store.verify import check_compatible, verify

_UPDATE_ID_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

DigestOf = Callable[[Path, str, str], str]
"""(folder of a source, its digest, precision) → digest of the bundle that this build converts it to."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options that the stores of all models in one state folder share."""

    state: Path
    limits: StagingLimits = field(default_factory=StagingLimits)


def predict_bundle_digest(folder: Path, source: str, precision: str) -> str:
    """Digest of the bundle that the shipped converter makes of a source; empty if no engine supports the source."""
    try:
        row = parse_json_object(read_bounded(folder / CONFIGURATION, MAX_CONFIG_BYTES), CONFIGURATION)
        engine = select_engine(row)
    except (OSError, ValueError):
        return ""
    return compute_bundle_digest(source, engine.engine, engine.converter, precision)


class BundleStore:
    """The port `Store` for one model. From that model's thread only."""

    def __init__(
        self,
        options: StoreOptions,
        model: str,
        clock: Clock,
        check_stop: Callable[[], None],
        others: Callable[[], garbage.References],
        digest_of: DigestOf = predict_bundle_digest,
        progress: Progress | None = None,
    ) -> None:
        """Check the path of the state folder; create nothing yet.

        Args:
            options: shared by all models.
            model: name of the model, and of its row in the committed pointer.
            clock: for deadlines and times.
            check_stop: called often during long operations; raises to stop them.
            others: returns what the other models of this state folder refer to.
            digest_of: predicts the digest of a bundle before it is converted.
            progress: updated while files are downloaded.

        Raises:
            UnsafeStateFolder: check 1 failed.
        """
        check_state_path(options.state)
        self._options = options
        self._state = options.state
        self._model = model
        self._clock = clock
        self._check_stop = check_stop
        self._others = others
        self._digest_of = digest_of
        self._progress = progress or Progress()
        self._predicted: tuple[Installed, str] | None = None

    def stage(
        self, update_id: str, release: Release, hub: Hub, max_bytes: int, deadline_seconds: float, *, is_fresh: bool
    ) -> str:
        """Download the declared files into the update's staging folder; returns their source digest."""
        ends = self._clock.monotonic() + deadline_seconds
        folder = self._incoming(update_id)
        stager = Stager(folder, release, hub, self._options.limits, self._clock, ends, self._progress)
        try:
            return stager.run(max_bytes, self._check_stop, is_fresh=is_fresh)
        finally:
            self._progress.clear()

    def source_folder(self, update_id: str, source_digest: str, *, is_kept: bool) -> Path:
        """The folder of the staged or kept files of a source; after `keep_source` it is the kept one."""
        staged = self._incoming(update_id) / FILES_FOLDER
        if is_kept or (not staged.is_dir() and is_digest(source_digest) and self._kept(source_digest).is_dir()):
            return self._kept(source_digest)
        return staged

    def verify(self, folder: Path, source_digest: str, compatible_with: str) -> Provenance | None:
        """Run checks 2 to 13 on a folder; returns the provenance to seal with it."""
        serving = self._read_serving(compatible_with)
        try:
            listing = folder.parent / LISTING_NAME
            listed = read_listing_file(listing) if folder.name == FILES_FOLDER else None
            check_files(listed or ())
            engine, passed = verify(folder, source_digest, listed, self._check_stop)
        except FileNotFoundError as error:
            raise make_check_failure(checks.HASHES, "CONTENT_MISMATCH", "the staged files are missing") from error
        except ManifestBroken as error:
            raise make_check_failure(
                checks.HASHES, "CONTENT_MISMATCH", f"the stored listing is damaged: {error}"
            ) from error
        except OSError as error:
            raise classify_disk_error(error, "the staged files cannot be read") from error
        if serving is not None and engine.task.value != serving.task:  # checked before the costly conversion
            message = f"its task is {engine.task.value!r}, the serving bundle's is {serving.task!r}"
            raise make_check_failure(checks.COMPATIBLE, "TASK_CHANGED", message)
        known = None if serving is None or serving.source_digest != source_digest else serving.provenance
        return build_provenance(folder.parent / ORIGIN_NAME, passed, self._clock.now(), known)

    def check_compatible(self, bundle_digest: str, compatible_with: str, *, may_change_labels: bool) -> None:
        """Run check 15: compare a sealed bundle with the serving one."""
        serving = self._read_serving(compatible_with)
        if serving is None or bundle_digest == compatible_with:
            return
        folders = [bundle_folder(self._state, digest) for digest in (bundle_digest, compatible_with)]
        try:
            candidate = self.bundle(bundle_digest)
            check_compatible(candidate, folders[0], serving, folders[1], may_change_labels=may_change_labels)
        except (BundleBroken, ValueError) as error:
            raise EffectFailed.transient("BUNDLE_BROKEN", f"the sealed bundles cannot be compared: {error}") from error
        except OSError as error:
            raise classify_disk_error(error, "the sealed bundles cannot be compared") from error

    def notes(self, bundle_digest: str) -> tuple[str, ...]:
        """Notes of a sealed bundle about how the published files were read; empty if it cannot be read."""
        try:
            return self.bundle(bundle_digest).notes
        except (BundleBroken, OSError):
            return ()

    def keep_source(self, update_id: str, source_digest: str) -> None:
        """Move the staged files of a sealed source to the kept sources. Idempotent."""
        staged, kept = self._incoming(update_id) / FILES_FOLDER, self._kept(source_digest)
        try:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            if staged.is_dir() and not kept.exists():
                staged.rename(kept)
                sync_folder(kept.parent)
            garbage.delete(self._incoming(update_id))
        except OSError as error:
            raise classify_disk_error(error, "the source files cannot be kept") from error

    def sealed(self) -> frozenset[str]:
        """Digests of all sealed bundles."""
        return garbage.list_sealed(self._state)

    def free_bytes(self) -> int:
        """Free bytes of the state folder's disk; -1 if the system does not say."""
        try:
            return shutil.disk_usage(self._state).free
        except OSError:
            return -1

    def converts_to(self, installed: Installed) -> str:
        """Digest of the bundle that this build converts a kept source to; empty if the source is not kept."""
        if self._predicted is None or self._predicted[0] != installed:
            self._predicted = (installed, self._predict(installed))
        return self._predicted[1]

    def pointer(self) -> Installed | None:
        """The model's row in the committed pointer; None without one."""
        try:
            row = read_committed(self._state).get(self._model)
        except BundleBroken as error:
            raise _classify_broken_pointer(error) from error
        return None if row is None else Installed(row.revision, row.source_digest, row.bundle_digest, row.origin)

    def write_pointer(self, installed: Installed | None) -> None:
        """Replace the model's row, durably; other models' rows stay."""
        row = None if installed is None else make_row(self._model, installed)
        try:
            # The rows of all models with an updater are also in the journal: each model writes its own again.
            update_pointer(self._state, self._model, lambda _: row, replace_broken=True)
        except BundleBroken as error:
            raise _classify_broken_pointer(error) from error
        except OSError as error:
            raise classify_disk_error(error, "the committed pointer cannot be written") from error
        self._predicted = None

    def collect(
        self, keep_bundles: frozenset[str], keep_sources: frozenset[str], keep_update_id: str, cap_bytes: int
    ) -> None:
        """Delete unreferenced files."""
        updates = frozenset({keep_update_id} - {""})
        try:
            with lock_pointer(self._state):
                # Under the lock, whose wait is long: what other models refer to now, and what the pointer names, also
                # rows of models that are no longer configured.
                references = self._others() | garbage.References(keep_bundles, keep_sources, updates)
                rows = read_committed(self._state).values()
                replaced = read_replaced_digests(self._state)
                named = garbage.References(
                    replaced.union(row.bundle_digest for row in rows), replaced.union(row.source_digest for row in rows)
                )
                dropped = garbage.drop(self._state, references | named, cap_bytes, self._clock.now())
            for path in dropped.paths:
                self._check_stop()
                with dropped.keep_failure():
                    garbage.delete(path)
            if dropped.failure is not None:
                raise dropped.failure
        except BundleBroken as error:
            raise _classify_broken_pointer(error) from error
        except OSError as error:
            raise classify_disk_error(error, "unreferenced files cannot be deleted") from error

    def bundle(self, digest: str) -> Bundle:
        """Read the manifest of a sealed bundle.

        Raises:
            BundleBroken: it is missing or damaged.
            OSError: it cannot be read now.
        """
        return read_bundle(bundle_folder(self._state, digest))

    def _incoming(self, update_id: str) -> Path:
        if not update_id or not _UPDATE_ID_CHARS.issuperset(update_id):
            raise RuntimeError("an update id is not safe as a folder name")
        return self._state / INCOMING / update_id

    def _kept(self, source_digest: str) -> Path:
        if not is_digest(source_digest):
            raise RuntimeError("a source digest is not safe as a folder name")
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

    def _read_serving(self, digest: str) -> Bundle | None:
        """The serving bundle; None without one, or if it is damaged: then compatibility is not checked."""
        try:
            return self.bundle(digest) if digest else None
        except BundleBroken:
            return None


def _classify_broken_pointer(error: BundleBroken) -> EffectFailed:
    if isinstance(error, SchemaTooNew):
        return EffectFailed.denied("POINTER_TOO_NEW", str(error))
    return EffectFailed.permanent("POINTER_BROKEN", str(error))


def make_row(model: str, installed: Installed) -> Committed:
    """The row of the committed pointer for a committed revision."""
    return Committed(model, installed.bundle_digest, installed.source_digest, installed.revision, installed.origin)


# Failures of the child process that say nothing about the revision.
_NOT_REVISIONS_FAULT = frozenset({"DISK_FULL", "CONVERT_FAILED", "IO_FAILED", "SOURCE_UNREADABLE", "TIME_LIMIT"})
_OF_A_KILLED_CHILD = frozenset({"CONVERT_FAILED", reasons.OUT_OF_MEMORY})


class ChildConverter:
    """The port `Converter`: converts in a child process with limits, and seals into one state folder."""

    def __init__(
        self,
        state: Path,
        limits: ConvertLimits,
        check_stop: Callable[[], None],
        convert: Convert = run_convert,
        reserve_bytes: int = 0,
    ) -> None:
        """Convert nothing yet.

        Args:
            state: the state folder.
            limits: of the child; its timeout is lowered to each call's deadline.
            check_stop: called when a child was killed, as an updater that stops does; raises if that is why.
            convert: converts a folder.
            reserve_bytes: of the disk, that stay free.
        """
        self._reserve_bytes = reserve_bytes
        self._state = state
        self._check_stop = check_stop
        self._limits = limits
        self._convert = convert

    def seal(
        self, folder: Path, revision: str, precision: str, deadline_seconds: float, provenance: Provenance | None
    ) -> str:
        """Convert and seal, unless that bundle is sealed already; returns the bundle digest."""
        limits = replace(self._limits, timeout_seconds=min(deadline_seconds, self._limits.timeout_seconds))
        stored = precision if precision in PRECISIONS else PRECISIONS[0]  # a runner casts to its precision
        try:
            verified = _read_source_digest(folder)
            self._check_space(folder, verified, stored)
            bundle = self._convert(
                folder, self._state, revision, limits, stored, digest=verified, provenance=provenance
            )
        except ConversionRefused as error:
            if error.reason in _OF_A_KILLED_CHILD:
                self._check_stop()
            if error.reason in checks.UNCHANGED.reasons:
                raise make_check_failure(checks.UNCHANGED, error.reason, str(error), FailureKind.TRANSIENT) from error
            if error.reason in MEMORY_REASONS:
                shortage = Shortage("", error.needed_bytes, error.free_bytes)
                failure = EffectFailure(FailureKind.TRANSIENT, error.reason, str(error), shortage=shortage)
                raise EffectFailed(failure) from error
            if error.reason in _NOT_REVISIONS_FAULT:
                raise EffectFailed.transient(error.reason, str(error)) from error
            raise make_failure_by_reason(error.reason, str(error)) from error  # check 14
        except OSError as error:
            raise classify_disk_error(error, "the bundle cannot be written") from error
        return bundle.bundle_digest

    def _check_space(self, folder: Path, verified: str, precision: str) -> None:
        """Check before hours of work that the result fits, unless it is sealed already."""
        source = find_source(folder)
        is_sealed = verified and bundle_folder(self._state, source.bundle_digest(verified, precision)).is_dir()
        if not is_sealed:
            check_space(self._state, SpacePlan(0, source.size, self._reserve_bytes))


def _read_source_digest(folder: Path) -> str:
    """Source digest of verified files: from the folder's name, or from the listing beside it; empty without both."""
    kept = folder.name.replace("sha256-", "sha256:", 1)
    if is_digest(kept):
        return kept
    listing = folder.parent / LISTING_NAME
    return compute_source_digest(read_listing_file(listing)) if listing.exists() else ""
