"""A local folder as a hub: `<hub>/<model>/<revision>/…` with a manifest. The default; needs no network.

A revision is ready once every declared file is complete; until then it is still being published.
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
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import Release
from updater.core.ports import EffectFailed
from updater.revision import IncompleteFile, UnsupportedRevision, describe_release

MAX_REVISIONS = 10_000


class DirectoryHub:
    """The port `Hub` for one model in a folder. Reads only."""

    def __init__(self, folder: Path, model: str, clock: Clock) -> None:
        """Read nothing yet.

        Args:
            folder: of the hub.
            model: name of the model and of its folder.
            clock: for deadlines.
        """
        self._folder = folder / model
        self._clock = clock
        self.place = HubLocation(HubKind.FOLDER, model)

    def revisions(self, deadline_seconds: float) -> tuple[str, ...]:
        """Names of all revisions. A folder that is missing is a fault, for example a volume that is not mounted."""
        del deadline_seconds  # one system call
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if is_revision_name(entry.name) and entry.is_dir()]
        except FileNotFoundError as error:
            sentence = f"the hub's folder {self._folder} does not exist: publish a revision, or mount the volume"
            raise EffectFailed.denied("HUB_MISSING", sentence) from error
        except OSError as error:
            raise _classify_error("the hub's folder", error) from error
        if len(names) > MAX_REVISIONS:
            raise EffectFailed.denied("HUB_TOO_LARGE", f"the hub has {len(names)} revisions")
        return tuple(sorted(names))

    def release(self, revision: str, deadline_seconds: float) -> Release:
        """List one revision, and check whether its declared files are complete."""
        ends = self._clock.monotonic() + deadline_seconds
        folder = self._find_revision(revision)
        try:
            # Upper-case hashes must not change the source digest.
            listed = tuple(replace(file, sha256=file.sha256.lower()) for file in read_listing(folder))
        except FileNotFoundError:
            return Release(revision, (), "", is_ready=False, missing="it has no manifest yet")
        except (ManifestBroken, NotRegular) as error:
            return Release(revision, (), "", is_ready=False, missing=str(error))
        except OSError as error:
            raise _classify_error("a revision's manifest", error) from error

        def read(file: BundleFile) -> bytes:
            missing = self._describe_missing(revision, file)
            if missing:
                raise IncompleteFile(missing)
            return self._read_small(revision, file.name, ends)

        return describe_release(revision, listed, read, lambda file: self._describe_missing(revision, file))

    def read(self, revision: str, name: str, offset: int, deadline_seconds: float) -> Iterator[bytes]:
        """The bytes of one file from an offset on, in pieces."""
        ends = self._clock.monotonic() + deadline_seconds
        try:
            with open_within(self._find_revision(revision), name) as file:
                file.seek(offset)
                for piece in read_uncached(file):
                    if self._clock.monotonic() > ends:
                        raise EffectFailed.transient("HUB_SLOW", f"reading {name} took too long")
                    yield piece
        except FileNotFoundError as error:
            raise EffectFailed.not_ready("FILE_MISSING", f"{name} is not there yet") from error
        except NotRegular as error:
            raise EffectFailed.transient("NOT_REGULAR", str(error)) from error
        except OSError as error:
            raise _classify_error("a file of the revision", error) from error

    def _find_revision(self, revision: str) -> Path:
        folder = self._folder / revision
        try:
            is_there = is_revision_name(revision) and folder.is_dir()
        except OSError as error:
            raise _classify_error("the folder of a revision", error) from error
        if not is_there:
            message = f"the hub has no revision {revision[:80]!r}"
            raise EffectFailed.permanent("REVISION_UNKNOWN", message)
        return folder

    def _describe_missing(self, revision: str, file: BundleFile) -> str:
        """What is missing of a file, for people; empty if it is complete."""
        try:
            with open_within(self._find_revision(revision), file.name) as opened:
                size = os.fstat(opened.fileno()).st_size
        except FileNotFoundError:
            return f"{file.name} is not there yet"
        except NotRegular:
            return ""  # waiting does not help; staging refuses it
        except OSError as error:
            raise _classify_error("a file of the revision", error) from error
        return f"{file.name} has {size} of {file.size} bytes" if size < file.size else ""

    def _read_small(self, revision: str, name: str, ends: float) -> bytes:
        content = b""
        try:
            for piece in self.read(revision, name, 0, max(0.0, ends - self._clock.monotonic())):
                content += piece
                if len(content) > MAX_CONFIG_BYTES:
                    raise UnsupportedRevision("CONFIG_BROKEN", f"{name} has more than {MAX_CONFIG_BYTES} bytes")
        except EffectFailed as error:
            if error.failure.reason == "NOT_REGULAR":  # of this revision alone; staging refuses it
                raise NotRegular(error.failure.message) from error
            raise
        return content


def _classify_error(what: str, error: OSError) -> EffectFailed:
    """The outcome of a file system error; DENIED for missing permissions."""
    kind = FailureKind.DENIED if isinstance(error, PermissionError) else FailureKind.TRANSIENT
    return EffectFailed(
        EffectFailure(kind, "HUB_UNREADABLE", f"{what} cannot be read: {(error.strerror or '').lower()}")
    )
