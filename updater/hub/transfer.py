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
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.bundle import BundleFile
from common.clock import Clock
from common.regular import NotRegular, open_within
from updater.ports import EffectFailed
from updater.results import Failed, FaultKind

CHUNK_BYTES = 1 << 20
MIN_PROGRESS_BYTES = 4 << 20  # a link that broke after as much is worth another try at once
Source = Callable[[int], Iterator[bytes]]  # a file's bytes, in pieces, from an offset on


class TransferBroken(Exception):
    """What came is not what was listed; says how it differs."""


class TransferShort(TransferBroken):
    """Less came than was listed; the rest may still be on its way."""


class LinkBroken(EffectFailed):
    """The connection ended in the middle; the rest may be asked for at once."""


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
        hashed, kept = _hash_kept(written, file, keep_on)  # rule 1
        fetched = 0
        if kept < file.size or file.size == 0:
            fetched = _append(source, written, hashed, file, kept, keep_on)
        if hashed.hexdigest() != file.sha256:  # rule 3
            written.truncate(0)
            raise TransferBroken(f"{file.name}: its SHA-256 is {hashed.hexdigest()[:12]}…, listed {file.sha256[:12]}…")
        written.flush()
        _sync(descriptor, target)
    return fetched


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


def _hash_kept(written: BinaryIO, file: BundleFile, keep_on: Callable[[], None]) -> tuple["hashlib._Hash", int]:
    size = os.fstat(written.fileno()).st_size
    if size > file.size:
        written.truncate(0)
        size = 0
    hashed = hashlib.sha256()
    for chunk in _chunks(written, size):
        keep_on()
        hashed.update(chunk)
    return hashed, size


def _append(
    source: Source,
    written: BinaryIO,
    hashed: "hashlib._Hash",
    file: BundleFile,
    kept: int,
    keep_on: Callable[[], None],
) -> int:
    """Add what is missing. What came before a link broke was hashed when it came: the next try begins behind it."""
    fetched = asked = 0
    while True:
        try:
            with _closing(source(kept + fetched)) as pieces:
                for piece in pieces:
                    keep_on()
                    if kept + fetched + len(piece) > file.size:  # rule 2
                        written.truncate(0)
                        raise TransferBroken(f"{file.name} is longer than the {file.size} bytes that were listed")
                    written.write(piece)
                    hashed.update(piece)
                    fetched += len(piece)
            break
        except LinkBroken:
            if fetched - asked < MIN_PROGRESS_BYTES:
                raise
            asked = fetched
    if kept + fetched < file.size:
        raise TransferShort(f"{file.name} ends after {kept + fetched} of {file.size} bytes")
    return fetched


@contextlib.contextmanager
def _closing(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Let go of what a source holds open, if it is a generator."""
    try:
        yield pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _sync(descriptor: int, target: Path) -> None:
    """Put a file on the disk; after a failure the kernel may have forgotten what it lost, so nothing of it is kept."""
    try:
        os.fsync(descriptor)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _chunks(reader: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left > 0 and (chunk := reader.read(min(left, CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk
