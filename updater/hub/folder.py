"""A folder as a hub: `<hub>/<model>/<revision>/…` with a manifest; the embedded default, and the air gap.

Whoever publishes may be in the middle of it: a revision counts when every declared file is there in full.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from common.bundle import BundleFile, HubKind, HubLocation
from common.clock import Clock
from common.durable import NotRegular, open_within, read_uncached
from common.engine_files import MAX_CONFIG_BYTES
from common.source import ManifestBroken, is_revision_name, read_listing
from updater.core.effects import Failed, FaultKind
from updater.core.ports import EffectFailed, Release
from updater.revision import IncompleteFile, UnsupportedRevision, describe_release

MAX_REVISIONS = 10_000


class DirectoryHub:
    """One model's revisions in a folder hub. Reads only."""

    def __init__(self, folder: Path, model: str, clock: Clock) -> None:
        """Look nowhere yet.

        Args:
            folder: the hub; it may appear later.
            model: name of the model, the folder in it.
            clock: measures deadlines.
        """
        self._folder = folder / model
        self._clock = clock
        self.place = HubLocation(HubKind.FOLDER, model)

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """Names of the folders that could be revisions; a hub that is not there yet has none."""
        del deadline_seconds  # one system call
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if is_revision_name(entry.name) and entry.is_dir()]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _unreadable("the hub's folder", error) from error
        if len(names) > MAX_REVISIONS:
            raise EffectFailed.denied("HUB_TOO_LARGE", f"the hub has {len(names)} revisions")
        return tuple(sorted(names))

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """List one revision, and see whether its declared files are there in full."""
        ends = self._clock.monotonic() + deadline_seconds
        folder = self._place(revision)
        try:
            # One form of a hash: how it is written makes no other revision.
            listed = tuple(replace(file, sha256=file.sha256.lower()) for file in read_listing(folder))
        except FileNotFoundError:
            return Release(revision, (), "", is_ready=False, missing="it has no manifest yet")
        except ManifestBroken as error:
            return Release(revision, (), "", is_ready=False, missing=str(error))
        except OSError as error:
            raise _unreadable("a revision's manifest", error) from error

        def read(file: BundleFile) -> bytes:
            missing = self._missing(revision, file)
            if missing:
                raise IncompleteFile(missing)
            return self._read_small(revision, file.name, ends)

        return describe_release(revision, listed, read, lambda file: self._missing(revision, file))

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """The bytes of one file from an offset on."""
        ends = self._clock.monotonic() + deadline_seconds
        try:
            with open_within(self._place(revision), name) as file:
                file.seek(offset)
                for piece in read_uncached(file):
                    if self._clock.monotonic() > ends:
                        raise EffectFailed.transient("HUB_SLOW", f"reading {name} took too long")
                    yield piece
        except FileNotFoundError as error:
            raise EffectFailed.not_ready("FILE_MISSING", f"{name} is not there yet") from error
        except NotRegular as error:
            raise EffectFailed.permanent("NOT_REGULAR", str(error)) from error
        except OSError as error:
            raise _unreadable("a file of the revision", error) from error

    def _place(self, revision: str) -> Path:
        folder = self._folder / revision
        if not is_revision_name(revision) or not folder.is_dir():
            message = f"the hub has no revision {revision[:80]!r}"
            raise EffectFailed.permanent("REVISION_UNKNOWN", message)
        return folder

    def _missing(self, revision: str, file: BundleFile) -> str:
        """What is not there yet of a file; empty if it is there in full."""
        try:
            with open_within(self._place(revision), file.name) as opened:
                size = os.fstat(opened.fileno()).st_size
        except FileNotFoundError:
            return f"{file.name} is not there yet"
        except NotRegular:
            return ""  # it will not become one by waiting: staging refuses it
        except OSError as error:
            raise _unreadable("a file of the revision", error) from error
        return f"{file.name} has {size} of {file.size} bytes" if size < file.size else ""

    def _read_small(self, revision: str, name: str, ends: float) -> bytes:
        content = b""
        for piece in self.read(revision, name, 0, max(0.0, ends - self._clock.monotonic())):
            content += piece
            if len(content) > MAX_CONFIG_BYTES:
                raise UnsupportedRevision("CONFIG_BROKEN", f"{name} has more than {MAX_CONFIG_BYTES} bytes")
        return content


def _unreadable(what: str, error: OSError) -> EffectFailed:
    """Somebody must change a permission, or the disk may answer later."""
    kind = FaultKind.DENIED if isinstance(error, PermissionError) else FaultKind.TRANSIENT
    return EffectFailed(Failed(kind, "HUB_UNREADABLE", f"{what} cannot be read: {(error.strerror or '').lower()}"))
