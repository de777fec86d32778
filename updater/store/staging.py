"""A revision's declared files from a hub into a folder of their own, bounded and resumable.

incoming/<update_id>/listing.json    what was listed of the declared files
incoming/<update_id>/origin.json     where they came from, and when
incoming/<update_id>/files/…         the files, nothing else

Numbers are those of the list in `checks`.
"""

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.bundle import BundleFile, compute_source_digest
from common.clock import Clock
from common.durable import NotRegular, sync_folder, write_atomic
from common.engine_files import MAX_CONFIG_BYTES
from common.source import ManifestBroken, check_files, encode_manifest
from updater.core import checks
from updater.core.checks import by_reason, refused
from updater.core.effects import FaultKind
from updater.core.ports import Hub, Release
from updater.revision import NotServable, declared
from updater.status import Progress
from updater.store.state_folder import Origin, disk_failed, origin_bytes, transient
from updater.store.transfer import PaceRules, TransferBroken, TransferShort, paced, receive

LISTING_NAME, ORIGIN_NAME = "listing.json", "origin.json"
FILES_FOLDER = "files"
SPARE_FACTOR = 1.2  # of what is still to be written; the conversion writes about as much again


@dataclass(frozen=True, slots=True)
class StagingLimits:
    """What a transfer leaves of the disk."""

    reserve_bytes: int = 1 << 30  # stays free, whatever comes
    pace: PaceRules = field(default_factory=PaceRules)  # slower is broken off


class Stager:
    """Fetches one revision. One use."""

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
        """Touch nothing yet.

        Args:
            folder: the update's staging folder.
            release: the revision as it was listed.
            hub: where it lies.
            limits: what it may use.
            clock: measures.
            ends: clock.monotonic() after which it is broken off.
            progress: told how far it is.
        """
        self._files = folder / FILES_FOLDER
        self._folder = folder
        self._release = release
        self._hub = hub
        self._limits = limits
        self._clock = clock
        self._ends = ends
        self._progress = progress
        self._total = self._done = 0  # bytes of all declared files; of those that are here

    def run(self, max_bytes: int, keep_on: Callable[[], None], *, is_fresh: bool) -> str:
        """Fetch what is missing.

        Args:
            max_bytes: of all declared files together.
            keep_on: called often; raises to stop.
            is_fresh: throw away what was fetched before.

        Returns:
            Source digest of what lies there now.

        Raises:
            EffectFailed: with what it means.
        """
        listed = self._checked()
        try:
            if is_fresh:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
            names = self._declared(listed, keep_on)
            wanted = [listed[name] for name in names]
            self._check_room(wanted, max_bytes)
            for stray in [path for path in self._files.iterdir() if path.name not in names]:
                _remove(stray)
            self._total = sum(file.size for file in wanted)
            for file in wanted:
                self._fetch(file, keep_on)
                self._done += file.size
                self._progress.tell(self._done, self._total)
            write_atomic(self._folder / LISTING_NAME, encode_manifest(wanted))
            origin = Origin(self._hub.place, self._release.revision, self._clock.now())
            write_atomic(self._folder / ORIGIN_NAME, origin_bytes(origin))
            sync_folder(self._files)
            sync_folder(self._folder.parent)
        except OSError as error:
            raise disk_failed(error, "the revision cannot be stored") from error
        return compute_source_digest(wanted)

    def _checked(self) -> dict[str, BundleFile]:
        """What was listed, trusted as far as names, sizes and the form of hashes go."""
        files = [BundleFile(file.name, file.size, file.sha256.lower()) for file in self._release.files]
        try:
            check_files(files)
        except ManifestBroken as error:
            raise refused(checks.NAMES, "LISTING_UNSAFE", f"the listing is not safe: {error}") from error
        return {file.name: file for file in files}

    def _declared(self, listed: dict[str, BundleFile], keep_on: Callable[[], None]) -> tuple[str, ...]:
        def read(name: str) -> bytes:
            if listed[name].size > MAX_CONFIG_BYTES:
                raise NotServable("CONFIG_BROKEN", f"{name} has more than {MAX_CONFIG_BYTES} bytes")
            self._fetch(listed[name], keep_on)
            return (self._files / name).read_bytes()

        try:
            return declared({name: file.size for name, file in listed.items()}, read).names
        except NotServable as error:
            raise by_reason(error.reason, str(error)) from error

    def _check_room(self, wanted: list[BundleFile], max_bytes: int) -> None:
        total = sum(file.size for file in wanted)
        if total > max_bytes:
            message = f"the revision has {total} bytes, at most {max_bytes} are taken"
            raise refused(checks.SIZES, "TOO_LARGE", message)
        kept = sum(path.stat().st_size for path in self._files.iterdir() if path.is_file())
        needed = int(SPARE_FACTOR * max(0, total - kept)) + self._limits.reserve_bytes
        free = shutil.disk_usage(self._files).free
        if free < needed:
            raise transient("DISK_FULL", f"the disk has {free} bytes free, this update needs {needed}")

    def _fetch(self, file: BundleFile, keep_on: Callable[[], None]) -> None:
        def source(offset: int) -> Iterator[bytes]:
            left = self._ends - self._clock.monotonic()
            if left <= 0:
                raise transient("DEADLINE", f"staging took too long, at {file.name}")
            pieces = self._hub.read(self._release.revision, file.name, offset, left)
            pace = self._limits.pace
            return self._told(paced(pieces, pace, self._clock, file.name), self._done + offset)

        target = self._files / file.name
        try:
            try:
                receive(source, target, file, keep_on)
            except TransferShort as error:
                raise refused(checks.SIZES, "FILE_SHORT", str(error), FaultKind.NOT_READY) from error
            except TransferBroken:  # once more from its first byte: a link can flip a bit
                receive(source, target, file, keep_on)
        except TransferBroken as error:
            raise refused(checks.HASHES, "CONTENT_MISMATCH", str(error)) from error
        except NotRegular as error:
            raise refused(checks.REGULAR, "NOT_REGULAR", str(error)) from error

    def _told(self, pieces: Generator[bytes], done: int) -> Iterator[bytes]:
        """Pass pieces on, and say how far it is; what is read to choose the files comes before that is known."""
        with contextlib.closing(pieces):
            for piece in pieces:
                yield piece
                done += len(piece)
                if self._total:
                    self._progress.tell(done, self._total)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
