"""Downloads one file from a hub: bounded, resumable, hashed while it is written, cancelled if too slow.

Security rules:
 1. A partial file of an earlier attempt is read and hashed again before it is continued.
 2. Never more than the listed size is read or written; one byte more fails the transfer.
 3. A complete file has the listed SHA-256 (if there is one), or it is truncated; it is synced to disk before it counts
    as complete.
 4. Only regular files are opened, and no symbolic link is followed in any part of a name.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from common.bundle import BundleFile
from common.clock import Clock
from common.durable import NotRegular, open_within
from updater.core.ports import EffectFailed, LinkBroken, Skipped

CHUNK_BYTES = 1 << 20
SYNC_BYTES = 32 << 20  # written between two syncs
MIN_PROGRESS_BYTES = 4 << 20  # a broken connection that brought at least this is resumed at once
MAX_RESTARTS = 5  # of one file without a hash, in one attempt
FileSource = Callable[[int], Iterator[bytes]]  # the bytes of a file from an offset on, in pieces


class TransferBroken(Exception):
    """The received bytes differ from the listing; the message says how."""


class TransferShort(TransferBroken):
    """The file ended early; the rest may not be on the hub yet."""


@dataclass(frozen=True, slots=True)
class PaceRules:
    """The minimum speed of a transfer."""

    min_bytes_a_second: float = 1024.0
    window_seconds: float = 60.0  # speed is averaged over this


def enforce_pace(pieces: Iterator[bytes], rules: PaceRules, clock: Clock, name: str) -> Generator[bytes]:
    """Pass pieces on, and fail if the speed in one window is below the minimum.

    Raises:
        EffectFailed: TRANSIENT, "HUB_SLOW".
    """
    began, received = clock.monotonic(), 0
    with _closing(pieces):
        for piece in pieces:
            yield piece
            received += piece.skipped_bytes if isinstance(piece, Skipped) else len(piece)
            took = clock.monotonic() - began
            if took < rules.window_seconds:
                continue
            if received < rules.min_bytes_a_second * took:
                message = f"{name} was received at only {received / took:.0f} bytes a second"
                raise EffectFailed.transient("HUB_SLOW", message)
            began, received = clock.monotonic(), 0


def fetch_file(source: FileSource, target: Path, file: BundleFile, check_stop: Callable[[], None]) -> int:
    """Download a file, continuing an earlier attempt; a complete file is only verified.

    Args:
        source: to download from.
        target: path of the file; its folder exists.
        file: name, size and hash as listed; the hash may be empty.
        check_stop: called before every chunk; raises to stop.

    Returns:
        Bytes downloaded by this call.

    Raises:
        TransferBroken: the content differs from the listing.
        LinkBroken: the connection broke before it brought MIN_PROGRESS_BYTES; the partial file is kept.
        OSError: the file cannot be read or written; the partial file is kept.
    """
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as written:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode) or seen.st_nlink > 1:  # rule 4
            raise NotRegular(f"{file.name} is not a regular file with one link in the staging folder")
        partial = _PartialFile(file, target, written)
        partial.resume(check_stop)  # rule 1
        kept = partial.size
        if kept < file.size or file.size == 0:
            _fill(partial, source, check_stop)
        if file.sha256 and partial.hashed.hexdigest() != file.sha256:  # rule 3
            written.truncate(0)
            found = partial.hashed.hexdigest()
            raise TransferBroken(f"{file.name}: its SHA-256 is {found[:12]}…, listed {file.sha256[:12]}…")
        partial.sync()
    return partial.size - kept


@dataclass(slots=True)
class _PartialFile:
    """A file that is being downloaded.

    It is synced to disk and dropped from the page cache as it grows: syncing gigabytes at the end would block every
    other sync on that disk, and data that is not read again would evict data that is.
    """

    file: BundleFile
    target: Path
    written: BinaryIO
    hashed: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size: int = 0  # bytes written and hashed
    synced: int = 0  # bytes synced to disk

    def resume(self, check_stop: Callable[[], None]) -> None:
        """Read and hash the bytes of an earlier attempt."""
        left = os.fstat(self.written.fileno()).st_size
        if left > self.file.size:
            self.written.truncate(0)
            left = 0
        for chunk in _chunks(self.written, left):
            check_stop()
            self.hashed.update(chunk)
        self.size = left

    def restart(self) -> None:
        """Drop what was written."""
        self.written.seek(0)
        self.written.truncate(0)
        self.hashed, self.size, self.synced = hashlib.sha256(), 0, 0

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        if self.size + len(piece) > self.file.size:  # rule 2
            self.written.truncate(0)
            raise TransferBroken(f"{self.file.name} is longer than the {self.file.size} bytes that were listed")
        self.written.write(piece)
        self.hashed.update(piece)
        self.size += len(piece)
        if self.size - self.synced >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Sync to disk. If that fails the file is deleted: the kernel may have dropped dirty pages."""
        descriptor = self.written.fileno()
        self.written.flush()
        try:
            os.fsync(descriptor)
        except OSError:
            self.target.unlink(missing_ok=True)
            raise
        os.posix_fadvise(descriptor, self.synced, self.size - self.synced, os.POSIX_FADV_DONTNEED)
        self.synced = self.size


def hash_file(folder: Path, name: str, max_bytes: int, check_stop: Callable[[], None]) -> BundleFile:
    """Size and SHA-256 of a file, read from disk rather than from the page cache where the kernel permits.

    Raises:
        NotRegular, OSError: as `open_within` says.
        TransferBroken: it is longer than `max_bytes`.
    """
    hashed, size = hashlib.sha256(), 0
    with open_within(folder, name) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK_BYTES):
            check_stop()
            size += len(chunk)
            if size > max_bytes:
                raise TransferBroken(f"{name} is longer than the {max_bytes} bytes that were listed")
            hashed.update(chunk)
    return BundleFile(name, size, hashed.hexdigest())


def _fill(partial: _PartialFile, source: FileSource, check_stop: Callable[[], None]) -> None:
    """Append the missing bytes, resuming after broken connections that made enough progress.

    A file that is listed without a hash begins again: nothing would tell that the hub has replaced it meanwhile,
    and its parts would be of two contents.
    """
    started_at, restarts = partial.size, 0
    while True:
        try:
            with _closing(source(partial.size)) as pieces:
                for piece in pieces:
                    check_stop()
                    partial.add(piece)
            break
        except LinkBroken:
            if partial.size - started_at < MIN_PROGRESS_BYTES or restarts >= MAX_RESTARTS:
                raise
            if not partial.file.sha256:
                restarts += 1
                partial.restart()
            started_at = partial.size
    if partial.size < partial.file.size:
        message = f"{partial.file.name} ends after {partial.size} of {partial.file.size} bytes"
        raise TransferShort(message)


@contextlib.contextmanager
def _closing(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Close the pieces on exit, if they are a generator."""
    try:
        yield pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _chunks(reader: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left > 0 and (chunk := reader.read(min(left, CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk
