"""Reads a folder hub: models, revisions and their files.

A revision is listed once its manifest and all files in it are complete, so a copy in progress is not listed.
Hashes are taken from the manifest without checking them; the client that downloads a file checks its hash.
"""

import os
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from common.bundle import BundleFile
from common.durable import NotRegular, open_within
from common.source import MANIFEST_NAME, ManifestBroken, is_revision_name, read_manifest
from common.versions import sort_newest_first

MAX_REVISIONS = 1000  # on one page
MAX_CACHED = 20_000  # revisions that were found complete
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class HubRevision:
    """One complete revision."""

    name: str
    created_at: datetime
    files: tuple[BundleFile, ...]  # sorted by name


@dataclass(frozen=True, slots=True)
class RevisionPage:
    """A part of a model's revisions, newest version first."""

    revisions: list[HubRevision]
    total: int  # of all pages, with incomplete ones


class HubMissing(OSError):
    """The hub's folder does not exist, for example because its volume is not mounted."""


class NotOnHub(LookupError):
    """The hub has no such model, revision or file; the message lists what it has."""


class HubFolder:
    """Reads `<folder>/<model>/<revision>/…`; from any thread. A complete revision is checked only once."""

    def __init__(self, folder: Path) -> None:
        """Store the path. While the folder is missing, every request fails."""
        self._folder = folder
        self._lock = threading.Lock()
        self._seen: dict[Path, tuple[_Stamp, HubRevision]] = {}

    def has(self, model: str) -> bool:
        """Whether there is such a model."""
        return _MODEL.fullmatch(model) is not None and (self._folder / model).is_dir()

    def models(self) -> list[str]:
        """Names of all models, sorted.

        Raises:
            HubMissing: the hub's folder does not exist.
        """
        try:
            return sorted(entry.name for entry in os.scandir(self._folder) if self.has(entry.name))
        except FileNotFoundError as error:
            raise HubMissing(error.errno, "the hub's folder does not exist") from error

    def revisions(self, model: str, page: int = 1, size: int = MAX_REVISIONS) -> RevisionPage:
        """The complete revisions of one page.

        Args:
            model: name of the model.
            page: number of the page, from 1.
            size: revisions on a page; at most MAX_REVISIONS.

        Raises:
            NotOnHub: no such model.
            OSError: the folder cannot be read.
        """
        place, size = self._place(model), min(size, MAX_REVISIONS)
        names = sort_newest_first([entry.name for entry in os.scandir(place) if is_revision_name(entry.name)])
        found = (self._look(place / name) for name in names[(page - 1) * size : page * size])
        return RevisionPage([revision for revision in found if revision is not None], len(names))

    def revision(self, model: str, name: str) -> HubRevision:
        """One revision.

        Raises:
            NotOnHub: it does not exist or is incomplete.
            OSError: it cannot be read.
        """
        found = self._look(self._place(model) / name) if is_revision_name(name) else None
        if found is None:
            there = ", ".join(one.name for one in self.revisions(model, size=5).revisions) or "none yet"
            raise NotOnHub(f"{model} has no revision {name[:80]!r}; there are: {there}")
        return found

    def open(self, model: str, revision: str, name: str) -> tuple[BundleFile, BinaryIO]:
        """A file of a revision and its row of the manifest; the caller closes the file.

        Raises:
            NotOnHub: the file is not listed or no longer exists.
            OSError: it cannot be read.
        """
        listed = {file.name: file for file in self.revision(model, revision).files}
        if name not in listed:  # so a name that is opened was checked with the manifest
            raise NotOnHub(f"{revision} has no file {name[:80]!r}")
        try:
            return listed[name], open_within(self._folder / model / revision, name)
        except (FileNotFoundError, NotRegular) as error:
            raise NotOnHub(f"{name} is gone from {revision}") from error

    def _place(self, model: str) -> Path:
        if not self.has(model):
            raise NotOnHub(
                f"there is no model {model[:80]!r}; there are: {', '.join(self.models()[:20]) or 'none yet'}"
            )
        return self._folder / model

    def _look(self, place: Path) -> HubRevision | None:
        """Read a manifest and check that its files are complete, unless that was checked before."""
        try:
            stat = (place / MANIFEST_NAME).stat(follow_symlinks=False)
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            with self._lock:
                seen = self._seen.get(place)
            if seen is not None and seen[0] == stamp:
                return seen[1]
            files = read_manifest(place)
        except (FileNotFoundError, NotADirectoryError, ManifestBroken, NotRegular):
            return None
        if not all(_is_whole(place / file.name, file.size) for file in files):
            return None
        revision = HubRevision(place.name, datetime.fromtimestamp(int(stat.st_mtime), UTC), files)
        with self._lock:
            if len(self._seen) >= MAX_CACHED:
                self._seen.clear()
            self._seen[place] = (stamp, revision)
        return revision


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat(follow_symlinks=False).st_size >= size
    except (FileNotFoundError, NotADirectoryError):
        return False
