"""Downloads the declared files of a revision into the staging folder of one update, bounded and resumable."""

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.bundle import BundleFile, compute_source_digest
from common.clock import Clock
from common.durable import NotRegular, sync_folder, write_atomic
from common.engine_files import MAX_CONFIG_BYTES
from common.source import ManifestBroken, check_files, encode_manifest
from updater.core import checks
from updater.core.checks import make_check_failure, make_failure_by_reason
from updater.core.effects import EffectFailure, FailureKind, Shortage
from updater.core.facts import Release
from updater.core.ports import EffectFailed, Hub
from updater.revision import UnsupportedRevision, find_declared_files
from updater.status import Progress
from updater.store import garbage
from updater.store.state_folder import (
    FILES_FOLDER,
    LISTING_NAME,
    ORIGIN_NAME,
    FetchRecord,
    classify_disk_error,
    encode_fetch_record,
)
from updater.store.transfer import PaceRules, TransferBroken, TransferShort, enforce_pace, fetch_file, hash_file

_ANY_HASH = "0" * 64  # well-formed
CONVERSION_FACTOR = 1.75  # bytes that a conversion writes for each byte of the source; the most that was measured


@dataclass(frozen=True, slots=True)
class StagingLimits:
    """Limits of a download."""

    reserve_bytes: int = 1 << 30  # of the disk, that stay free
    pace: PaceRules = field(default_factory=PaceRules)  # slower downloads are cancelled
    computes_hashes: bool = True  # of files that are listed without one; else they are refused


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """The disk space that an update needs, beside what is stored already."""

    download_bytes: int  # still to be downloaded
    source_bytes: int  # to be converted and sealed
    reserve_bytes: int  # that stay free

    @property
    def conversion_bytes(self) -> int:
        """Estimated size of the converted files."""
        return int(CONVERSION_FACTOR * self.source_bytes)

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return self.download_bytes + self.conversion_bytes + self.reserve_bytes


def check_space(state: Path, plan: SpacePlan) -> None:
    """Check that an update fits on the disk of the state folder.

    Raises:
        EffectFailed: DISK_FULL, with the numbers.
    """
    free = shutil.disk_usage(state).free
    if free >= plan.needed_bytes:
        return
    stored = garbage.measure_stored(state)
    message = (
        f"the update needs {_gib(plan.needed_bytes)} of disk space ({_gib(plan.download_bytes)} to download, "
        f"{_gib(plan.conversion_bytes)} to convert and seal, {_gib(plan.reserve_bytes)} stay free), and {_gib(free)} "
        f"are free; bundles and sources that are kept have {_gib(stored)}"
    )
    shortage = Shortage("", plan.needed_bytes, free)
    raise EffectFailed(EffectFailure(FailureKind.TRANSIENT, "DISK_FULL", message, shortage=shortage))


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 27 else f"{size / (1 << 20):.1f} MiB"


class Stager:
    """Downloads one revision. Use it once."""

    def __init__(
        self,
        folder: Path,
        release: Release,
        hub: Hub,
        limits: StagingLimits,
        clock: Clock,
        ends: float,
        progress: Progress,
    ) -> None:
        """Download nothing yet.

        Args:
            folder: the update's staging folder.
            release: the revision as listed.
            hub: to download from.
            limits: of disk space and speed.
            clock: for the deadline.
            ends: deadline, by clock.monotonic().
            progress: updated while files are downloaded.
        """
        self._files = folder / FILES_FOLDER
        self._folder = folder
        self._release = release
        self._hub = hub
        self._limits = limits
        self._clock = clock
        self._ends = ends
        self._progress = progress
        self._total = self._done = 0  # bytes of all declared files; of those that are complete
        self._computed: dict[str, BundleFile] = {}  # files that were listed without a hash, by name

    def run(self, max_bytes: int, check_stop: Callable[[], None], *, is_fresh: bool) -> str:
        """Download the files that are missing or incomplete.

        Args:
            max_bytes: of all declared files together.
            check_stop: called often; raises to stop.
            is_fresh: delete earlier downloads first.

        Returns:
            Source digest of the staged files.

        Raises:
            EffectFailed: a check or the download failed.
        """
        listed = self._check_listing()
        try:
            if is_fresh:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
            names = self._find_declared(listed, check_stop)
            self._check_hashes_listed([listed[name] for name in names])
            self._check_space([listed[name] for name in names], max_bytes)
            for stray in [path for path in self._files.iterdir() if path.name not in names]:
                _remove(stray)
            self._total = sum(listed[name].size for name in names)
            fetched = []
            for name in names:
                fetched.append(self._fetch(listed[name], check_stop))
                self._done += listed[name].size
                self._progress.report(self._done, self._total)
            write_atomic(self._folder / LISTING_NAME, encode_manifest(fetched))
            computed = tuple(sorted(self._computed))
            record = FetchRecord(self._hub.place, self._release.revision, self._clock.now(), computed)
            write_atomic(self._folder / ORIGIN_NAME, encode_fetch_record(record))
            sync_folder(self._files)
            sync_folder(self._folder.parent)
        except OSError as error:
            raise classify_disk_error(error, "the revision cannot be stored") from error
        return compute_source_digest(fetched)

    def _check_listing(self) -> dict[str, BundleFile]:
        """The listed files, after checking names, sizes and the form of hashes; a hash may be missing."""
        files = [BundleFile(file.name, file.size, file.sha256.lower()) for file in self._release.files]
        try:
            check_files([replace(file, sha256=file.sha256 or _ANY_HASH) for file in files])
        except ManifestBroken as error:
            raise make_check_failure(checks.NAMES, "LISTING_UNSAFE", f"the listing is unsafe: {error}") from error
        return {file.name: file for file in files}

    def _find_declared(self, listed: dict[str, BundleFile], check_stop: Callable[[], None]) -> tuple[str, ...]:
        def read(name: str) -> bytes:
            if listed[name].size > MAX_CONFIG_BYTES:
                raise UnsupportedRevision("CONFIG_BROKEN", f"{name} has more than {MAX_CONFIG_BYTES} bytes")
            self._fetch(listed[name], check_stop)
            return (self._files / name).read_bytes()

        try:
            return find_declared_files({name: file.size for name, file in listed.items()}, read).names
        except UnsupportedRevision as error:
            raise make_failure_by_reason(error.reason, str(error)) from error

    def _check_hashes_listed(self, wanted: list[BundleFile]) -> None:
        name = next((file.name for file in wanted if not file.sha256), "")
        if name and not self._limits.computes_hashes:
            message = f'{name} is listed without SHA-256, and missing_hashes is "refuse"'
            raise make_check_failure(checks.HASHES, "HASH_MISSING", message, FailureKind.DENIED)

    def _check_space(self, wanted: list[BundleFile], max_bytes: int) -> None:
        total = sum(file.size for file in wanted)
        if total > max_bytes:
            message = f"the revision has {total} bytes; max_revision_bytes is {max_bytes}"
            raise make_check_failure(checks.SIZES, "TOO_LARGE", message)
        kept = sum(path.stat().st_size for path in self._files.iterdir() if path.is_file())
        check_space(self._folder.parent.parent, SpacePlan(max(0, total - kept), total, self._limits.reserve_bytes))

    def _fetch(self, file: BundleFile, check_stop: Callable[[], None]) -> BundleFile:
        """Download a file; returns it with its hash, which is computed if the hub lists none."""
        if file.sha256 or file.name in self._computed:
            file = self._computed.get(file.name, file)
            self._download(file, check_stop)
            return file
        # Nothing tells whether a partial file of an earlier attempt belongs to what the hub has now.
        (self._files / file.name).unlink(missing_ok=True)
        self._download(file, check_stop)
        self._computed[file.name] = hash_file(self._files, file.name, file.size, check_stop)
        return self._computed[file.name]

    def _download(self, file: BundleFile, check_stop: Callable[[], None]) -> None:
        def source(offset: int) -> Iterator[bytes]:
            left = self._ends - self._clock.monotonic()
            if left <= 0:
                raise EffectFailed.transient("DEADLINE", f"staging took too long, at {file.name}")
            pieces = self._hub.read(self._release.revision, file.name, offset, left)
            pace = self._limits.pace
            return self._track(enforce_pace(pieces, pace, self._clock, file.name), self._done + offset)

        target = self._files / file.name
        try:
            try:
                fetch_file(source, target, file, check_stop)
            except TransferShort as error:
                raise make_check_failure(checks.SIZES, "FILE_SHORT", str(error), FailureKind.NOT_READY) from error
            except TransferBroken:  # once more from the first byte: the network can corrupt data
                fetch_file(source, target, file, check_stop)
        except TransferBroken as error:
            raise make_check_failure(checks.HASHES, "CONTENT_MISMATCH", str(error)) from error
        except NotRegular as error:
            raise make_check_failure(checks.REGULAR, "NOT_REGULAR", str(error)) from error

    def _track(self, pieces: Generator[bytes], done: int) -> Iterator[bytes]:
        """Pass pieces on and update the progress, once the total size is known."""
        with contextlib.closing(pieces):
            for piece in pieces:
                yield piece
                done += len(piece)
                if self._total:
                    self._progress.report(done, self._total)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
