"""Deletes unreferenced files and folders. A folder is renamed first, so that no half-deleted folder keeps its name."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.bundle import MANIFEST_NAME, is_digest

DROPPED_PREFIX = ".dropped-"
# Temporary files of a running conversion or import are younger than this.
ORPHAN_AGE_SECONDS = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class References:
    """Digests of bundles and sources, and ids of updates, whose files must be kept."""

    bundles: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    updates: frozenset[str] = frozenset()

    def __or__(self, other: "References") -> "References":
        """The union."""
        return References(self.bundles | other.bundles, self.sources | other.sources, self.updates | other.updates)


@dataclass(frozen=True, slots=True)
class _StoredFolder:
    path: Path
    digest: str
    size: int  # bytes
    changed: float  # seconds of the wall clock
    is_referenced: bool


def collect(state: Path, references: References, cap_bytes: int, now: datetime, check_stop: Callable[[], None]) -> None:
    """Delete orphans, then the oldest unreferenced bundles and sources until all fit into the cap.

    Raises:
        OSError: something could not be deleted; the next run tries the rest.
    """
    for path in _find_orphans(state, references, now):
        delete(path)
    stored = sorted(_list_stored(state, references), key=lambda one: (not one.is_referenced, -one.changed))
    used = 0
    for one in stored:
        check_stop()
        if one.is_referenced or used + one.size <= cap_bytes:
            used += one.size
        else:
            delete(one.path)


def delete(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return
        target = path if path.name.startswith(DROPPED_PREFIX) else path.with_name(DROPPED_PREFIX + path.name)
        if target != path:
            if target.exists():
                shutil.rmtree(target)
            path.rename(target)
        shutil.rmtree(target)


def measure_stored(state: Path) -> int:
    """Bytes of all sealed bundles and kept sources."""
    return sum(one.size for one in _list_stored(state, References()))


def list_sealed(state: Path) -> frozenset[str]:
    """Digests of all sealed bundles."""
    return frozenset(digest for path, digest in _list_digests(state / "bundles") if (path / MANIFEST_NAME).is_file())


def _list_stored(state: Path, references: References) -> Iterator[_StoredFolder]:
    for folder, kept in (("bundles", references.bundles), ("sources", references.sources)):
        for path, digest in _list_digests(state / folder):
            yield _StoredFolder(path, digest, _measure(path), path.stat().st_mtime, digest in kept)


def _list_digests(folder: Path) -> Iterator[tuple[Path, str]]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            digest = path.name.replace("sha256-", "sha256:", 1)
            if is_digest(digest):
                yield path, digest


def _find_orphans(state: Path, references: References, now: datetime) -> Iterator[Path]:
    for path in _list_entries(state / "incoming"):
        if path.name not in references.updates:
            yield path
    for folder in (state / "bundles", state / "sources"):
        for path in _list_entries(folder):
            if path.name.startswith(DROPPED_PREFIX) or (path.name.startswith(".") and _is_old(path, now)):
                yield path
    for path in _list_entries(state / "staging"):
        if _is_old(path, now):
            yield path
    for path in _list_entries(state):
        if path.name.startswith(".") and path.name.endswith(".tmp") and _is_old(path, now):
            yield path


def _is_old(path: Path, now: datetime) -> bool:
    """Whether it was last changed more than ORPHAN_AGE_SECONDS ago; False after the clock was set back."""
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        newest = max(one.lstat().st_mtime for one in (path, *(path.iterdir() if path.is_dir() else ())))
    return now.timestamp() - newest > ORPHAN_AGE_SECONDS


def _list_entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _measure(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(path) for name in names)
