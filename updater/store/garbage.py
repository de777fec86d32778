"""Deleting what nothing refers to. A thing leaves its place by one rename before it is taken apart."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.bundle import MANIFEST_NAME, is_digest

DROPPED_PREFIX = ".dropped-"
# Files of a conversion or of an import by hand that is still running are younger.
ORPHAN_AGE_SECONDS = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class Keep:
    """What is referred to."""

    bundles: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    updates: frozenset[str] = frozenset()

    def __or__(self, other: "Keep") -> "Keep":
        """Both."""
        return Keep(self.bundles | other.bundles, self.sources | other.sources, self.updates | other.updates)


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path
    digest: str
    size: int  # bytes
    changed: float  # seconds of the wall clock
    is_kept: bool


def collect(state: Path, keep: Keep, cap_bytes: int, now: datetime, keep_on: Callable[[], None]) -> tuple[int, int]:
    """Delete orphans, and of what nothing refers to the oldest, until all is under the cap.

    Returns:
        Bytes freed, and bytes that bundles and sources still use.

    Raises:
        OSError: something could not be deleted; the rest is tried at the next time.
    """
    freed = sum(drop(path) for path in _orphans(state, keep, now))
    stored = sorted(_stored(state, keep), key=lambda one: (not one.is_kept, -one.changed))
    used = 0
    for one in stored:
        keep_on()
        if one.is_kept or used + one.size <= cap_bytes:
            used += one.size
        else:
            freed += drop(one.path)
    return freed, used


def drop(path: Path) -> int:
    """Delete a file or a folder; what is half deleted never stands under its name. Returns the bytes that it had."""
    try:
        size = _size(path)
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return size
        target = path if path.name.startswith(DROPPED_PREFIX) else path.with_name(DROPPED_PREFIX + path.name)
        if target != path:
            if target.exists():
                shutil.rmtree(target)
            path.rename(target)
        shutil.rmtree(target)
    except FileNotFoundError:
        return 0
    return size


def sealed_digests(state: Path) -> frozenset[str]:
    """Digests of the bundles that are there."""
    return frozenset(digest for path, digest in _named(state / "bundles") if (path / MANIFEST_NAME).is_file())


def _stored(state: Path, keep: Keep) -> Iterator[_Stored]:
    for place, kept in (("bundles", keep.bundles), ("sources", keep.sources)):
        for path, digest in _named(state / place):
            yield _Stored(path, digest, _size(path), path.stat().st_mtime, digest in kept)


def _named(folder: Path) -> Iterator[tuple[Path, str]]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            digest = path.name.replace("sha256-", "sha256:", 1)
            if is_digest(digest):
                yield path, digest


def _orphans(state: Path, keep: Keep, now: datetime) -> Iterator[Path]:
    for path in _entries(state / "incoming"):
        if path.name not in keep.updates:
            yield path
    for folder in (state / "bundles", state / "sources"):
        for path in _entries(folder):
            if path.name.startswith(DROPPED_PREFIX) or (path.name.startswith(".") and _is_old(path, now)):
                yield path
    for path in _entries(state / "staging"):
        if _is_old(path, now):
            yield path
    for path in _entries(state):
        if path.name.startswith(".") and path.name.endswith(".tmp") and _is_old(path, now):
            yield path


def _is_old(path: Path, now: datetime) -> bool:
    """Whether nobody has touched it for long; a clock that went back makes nothing old."""
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        newest = max(one.lstat().st_mtime for one in (path, *(path.iterdir() if path.is_dir() else ())))
    return now.timestamp() - newest > ORPHAN_AGE_SECONDS


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(path) for name in names)
