"""Deletes unreferenced files and folders. A folder is renamed first, so that no half-deleted folder keeps its name.

What a crash leaves of a renamed folder is deleted by the next collection.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
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


def drop(state: Path, references: References, cap_bytes: int, now: datetime) -> list[Path]:
    """Drop orphans, then the oldest unreferenced bundles and sources until all fit into the cap.

    The caller holds the lock of the committed pointer, so that no row names a bundle at the same moment; deleting
    gigabytes takes longer than other models may wait for that lock, and needs none.

    Returns:
        What is to be deleted, with `delete`: orphans, and folders under names of no bundle or source.

    Raises:
        OSError: something could not be renamed; the next run deletes what was.
    """
    dropped = [_rename_dropped(path) for path in _find_orphans(state, references, now)]
    stored = sorted(_list_stored(state, references), key=lambda one: (not one.is_referenced, -one.changed))
    used = 0
    for one in stored:
        if one.is_referenced or used + one.size <= cap_bytes:
            used += one.size
        else:
            dropped.append(_rename_dropped(one.path))
    return dropped


def delete(path: Path) -> None:
    """Delete a file or a folder, if it exists; another thread may delete the same."""
    target = _rename_dropped(path)
    while target.is_dir() and not target.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # the other thread was faster with a file
            shutil.rmtree(target)
    target.unlink(missing_ok=True)


def _rename_dropped(path: Path) -> Path:
    """Give a folder a name that no reader takes for a bundle or a source; returns it. A file keeps its name."""
    if path.name.startswith(DROPPED_PREFIX) or not path.is_dir() or path.is_symlink():
        return path
    name = DROPPED_PREFIX + path.name
    while os.path.lexists(path.with_name(name)):  # what a crash has left
        name += "+"
    with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
        return path.rename(path.with_name(name))
    return path


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
        if path.name.startswith(DROPPED_PREFIX) or _is_old(path, now):
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
