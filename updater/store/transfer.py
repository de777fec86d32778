"""One file from a hub to a folder of ours: bounded, resumable, hashed on the way, and never too slow for long.

Rules of trust:
 1. A part that was kept from before is read and hashed again before anything is added to it.
 2. Never more than the declared size is read or written; one byte more is a fault.
 3. The whole has the declared SHA-256, or it is thrown away; the bytes are on the disk before it counts as there.
 4. Only regular files are opened, and no link is followed at any part of a name.
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
from updater.core.ports import EffectFailed, LinkBroken
from updater.core.results import Failed, FaultKind

CHUNK_BYTES = 1 << 20
SETTLED_BYTES = 32 << 20  # are written before they are put on the disk
MIN_PROGRESS_BYTES = 4 << 20  # a link that broke after as much is worth another try at once
Source = Callable[[int], Iterator[bytes]]  # a file's bytes, in pieces, from an offset on


class TransferBroken(Exception):
    """What came is not what was listed; says how it differs."""


class TransferShort(TransferBroken):
    """Less came than was listed; the rest may still be on its way."""


@dataclass(frozen=True, slots=True)
class PaceRules:
    """The least that a transfer must bring."""

    min_bytes_a_second: float = 1024.0
    window_seconds: float = 60.0  # over which it is averaged


def paced(pieces: Iterator[bytes], rules: PaceRules, clock: Clock, name: str) -> Generator[bytes]:
    """Pass pieces on while they come fast enough, one window after the other.

    Raises:
        EffectFailed: TRANSIENT, "HUB_SLOW": a window brought too little, however much there was before.
    """
    began, received = clock.monotonic(), 0
    with _closing(pieces):
        for piece in pieces:
            yield piece
            received += len(piece)
            took = clock.monotonic() - began
            if took < rules.window_seconds:
                continue
            if received < rules.min_bytes_a_second * took:
                message = f"{name} came with {received / took:.0f} bytes a second"
                raise EffectFailed(Failed(FaultKind.TRANSIENT, "HUB_SLOW", message))
            began, received = clock.monotonic(), 0


def receive(source: Source, target: Path, file: BundleFile, keep_on: Callable[[], None]) -> int:
    """Bring a file in, going on where an earlier attempt stopped; at once if it is there whole.

    Args:
        source: where it comes from.
        target: where it goes; its folder exists.
        file: what was listed.
        keep_on: called before every chunk; raises to stop.

    Returns:
        Bytes that were fetched now.

    Raises:
        TransferBroken: it is longer, shorter or other than listed; what is kept of it is hashed again next time.
        LinkBroken: the link broke again before it had brought MIN_PROGRESS_BYTES; the beginning is kept.
        OSError: it cannot be read or written; the beginning is kept.
    """
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as written:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # rule 4
            raise NotRegular(f"{file.name} is no regular file in the staging folder")
        arriving = _Arriving(file, target, written)
        arriving.take_up(keep_on)  # rule 1
        kept = arriving.size
        if kept < file.size or file.size == 0:
            _fill(arriving, source, keep_on)
        if arriving.hashed.hexdigest() != file.sha256:  # rule 3
            written.truncate(0)
            found = arriving.hashed.hexdigest()
            raise TransferBroken(f"{file.name}: its SHA-256 is {found[:12]}…, listed {file.sha256[:12]}…")
        arriving.settle()
    return arriving.size - kept


@dataclass(slots=True)
class _Arriving:
    """A file while its bytes come in.

    It goes to the disk, and out of the page cache, as it grows: gigabytes that are synced at their end
    hold up every other sync of that disk, and what nobody reads again pushes out what somebody does.
    """

    file: BundleFile
    target: Path
    written: BinaryIO
    hashed: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    size: int = 0  # bytes that are there and hashed
    settled: int = 0  # of them, those that are on the disk

    def take_up(self, keep_on: Callable[[], None]) -> None:
        """Read and hash what an earlier attempt has left."""
        left = os.fstat(self.written.fileno()).st_size
        if left > self.file.size:
            self.written.truncate(0)
            left = 0
        for chunk in _chunks(self.written, left):
            keep_on()
            self.hashed.update(chunk)
        self.size = left

    def add(self, piece: bytes) -> None:
        """Write on."""
        if self.size + len(piece) > self.file.size:  # rule 2
            self.written.truncate(0)
            raise TransferBroken(f"{self.file.name} is longer than the {self.file.size} bytes that were listed")
        self.written.write(piece)
        self.hashed.update(piece)
        self.size += len(piece)
        if self.size - self.settled >= SETTLED_BYTES:
            self.settle()

    def settle(self) -> None:
        """Put it on the disk; after a failure the kernel may have forgotten what it lost, so nothing of it is kept."""
        descriptor = self.written.fileno()
        self.written.flush()
        try:
            os.fsync(descriptor)
        except OSError:
            self.target.unlink(missing_ok=True)
            raise
        os.posix_fadvise(descriptor, self.settled, self.size - self.settled, os.POSIX_FADV_DONTNEED)
        self.settled = self.size


def hash_within(folder: Path, name: str, max_bytes: int, keep_on: Callable[[], None]) -> BundleFile:
    """Size and SHA-256 of a file as it lies on the disk now, not as it lies in the page cache if that can be dropped.

    Raises:
        NotRegular, OSError: as `open_within` says.
        TransferBroken: it has more than `max_bytes`.
    """
    hashed, size = hashlib.sha256(), 0
    with open_within(folder, name) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(CHUNK_BYTES):
            keep_on()
            size += len(chunk)
            if size > max_bytes:
                raise TransferBroken(f"{name} is longer than the {max_bytes} bytes that were listed")
            hashed.update(chunk)
    return BundleFile(name, size, hashed.hexdigest())


def _fill(arriving: _Arriving, source: Source, keep_on: Callable[[], None]) -> None:
    """Add what is missing. What came before a link broke was hashed when it came: the next try begins behind it."""
    asked = arriving.size
    while True:
        try:
            with _closing(source(arriving.size)) as pieces:
                for piece in pieces:
                    keep_on()
                    arriving.add(piece)
            break
        except LinkBroken:
            if arriving.size - asked < MIN_PROGRESS_BYTES:
                raise
            asked = arriving.size
    if arriving.size < arriving.file.size:
        message = f"{arriving.file.name} ends after {arriving.size} of {arriving.file.size} bytes"
        raise TransferShort(message)


@contextlib.contextmanager
def _closing(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Let go of what a source holds open, if it is a generator."""
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
