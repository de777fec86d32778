"""Deletes unreferenced files and folders. Each is renamed first, so that no half-deleted folder keeps its name.

What a crash leaves of it is deleted by the next collection.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    size: int  # bytes
    changed: float  # seconds of the wall clock
    is_referenced: bool


@dataclass(slots=True)
class Dropped:
    """What is to be deleted, with `delete`, and the first failure."""

    paths: list[Path] = field(default_factory=list)  # each under a name of no bundle, source or temporary file
    failure: OSError | None = None

    @contextlib.contextmanager
    def keep_failure(self) -> Iterator[None]:
        """One entry that cannot be read, renamed or deleted keeps no other from being deleted."""
        try:
            yield
        except FileNotFoundError:
            pass  # it was deleted meanwhile
        except OSError as error:
            self.failure = self.failure or error


def drop(state: Path, references: References, cap_bytes: int, now: datetime) -> Dropped:
    """Drop orphans, then the oldest unreferenced bundles and sources until all fit into the cap.

    The caller holds the lock of the committed pointer, so that no row names a bundle at the same moment; deleting
    gigabytes takes longer than other models may wait for that lock, and needs none. So all that is dropped is renamed:
    a bundle that is sealed under its name, and committed, after the lock was released, is another one.
    """
    dropped = Dropped()
    for folder, is_orphan in _list_orphan_rules(state, references, now):
        for path in _list_entries(folder, dropped):
            with dropped.keep_failure():
                if is_orphan(path):
                    _drop_one(path, dropped)
    stored = []
    for folder, kept in ((state / "bundles", references.bundles), (state / "sources", references.sources)):
        for path in _list_entries(folder, dropped):
            with dropped.keep_failure():
                if is_digest(digest := _digest_of(path)):
                    stored.append(_StoredFolder(path, _measure(path), path.stat().st_mtime, digest in kept))
    used = 0
    for one in sorted(stored, key=lambda one: (not one.is_referenced, -one.changed)):
        if one.is_referenced or used + one.size <= cap_bytes:
            used += one.size
        else:
            with dropped.keep_failure():
                _drop_one(one.path, dropped)
    return dropped


def delete(path: Path) -> None:
    """Delete a file or a folder, if it exists; another thread may delete the same."""
    target = _rename_dropped(path)
    if target is None:
        return
    while target.is_dir() and not target.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # the other thread was faster with a file
            shutil.rmtree(target)
    target.unlink(missing_ok=True)


def _drop_one(path: Path, dropped: Dropped) -> None:
    target = _rename_dropped(path)
    if target is not None:
        dropped.paths.append(target)


def _rename_dropped(path: Path) -> Path | None:
    """Give it a name that no reader takes for anything; returns it, or None if nothing has the old name any more."""
    if path.name.startswith(DROPPED_PREFIX):
        return path
    prefix = DROPPED_PREFIX
    while os.path.lexists(path.with_name(prefix + path.name)):  # what a crash has left
        prefix += "+"
    with contextlib.suppress(FileNotFoundError):
        return path.rename(path.with_name(prefix + path.name))
    return None


def measure_stored(state: Path) -> int:
    """Bytes of all sealed bundles and kept sources."""
    folders = (state / "bundles", state / "sources")
    return sum(_measure(path) for folder in folders for path, _ in _list_digests(folder))


def list_sealed(state: Path) -> frozenset[str]:
    """Digests of all sealed bundles."""
    return frozenset(digest for path, digest in _list_digests(state / "bundles") if (path / MANIFEST_NAME).is_file())


def _list_digests(folder: Path) -> Iterator[tuple[Path, str]]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if is_digest(digest := _digest_of(path)):
                yield path, digest


def _digest_of(path: Path) -> str:
    """The digest that the name of a bundle's or a source's folder means; of another name, no digest."""
    return path.name.replace("sha256-", "sha256:", 1)


def _list_orphan_rules(
    state: Path, references: References, now: datetime
) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
    """Folders, and which of their entries are orphans."""

    def is_dropped(path: Path) -> bool:
        return path.name.startswith(DROPPED_PREFIX)

    yield state / "incoming", lambda path: path.name not in references.updates
    for name in ("bundles", "sources"):
        yield state / name, lambda path: is_dropped(path) or (path.name.startswith(".") and _is_old(path, now))
    yield state / "staging", lambda path: is_dropped(path) or _is_old(path, now)
    yield (
        state,
        lambda path: path.name.startswith(".") and path.name.endswith(".tmp") and _is_old(path, now),
    )


def _is_old(path: Path, now: datetime) -> bool:
    """Whether it was last changed more than ORPHAN_AGE_SECONDS ago; False after the clock was set back."""
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        newest = max(one.lstat().st_mtime for one in (path, *(path.iterdir() if path.is_dir() else ())))
    return now.timestamp() - newest > ORPHAN_AGE_SECONDS


def _list_entries(folder: Path, dropped: Dropped) -> list[Path]:
    with dropped.keep_failure():
        return sorted(folder.iterdir())
    return []


def _measure(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(path) for name in names)
