"""A user's plain model folder as a revision of a folder hub: copied, listed, published by one rename."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.problems import CommandFailed
from common.bundle import BundleFile
from common.durable import sync_folder, write_atomic
from common.published import MANIFEST_NAME, ManifestBroken, check_names, is_revision_name, manifest_bytes, read_manifest

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing did."""

    folder: Path
    files: tuple[BundleFile, ...]
    is_new: bool  # False: the same revision was there already

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def publish(source: Path, hub: Path, model: str, revision: str) -> Published:
    """Copy a folder into a hub and publish it whole; the same again changes nothing.

    Args:
        source: a model as it was downloaded or trained; hidden files stay behind.
        hub: the folder that the updater watches; made if it is missing.
        model: name of the model.
        revision: name of the revision, for example "v1.2.0".

    Raises:
        CommandFailed: the name is not allowed, the folder holds what cannot be published, or the revision is
            there with other files: a revision never changes.
        OSError: something cannot be read or written; nothing was published.
    """
    if not is_revision_name(revision):
        raise CommandFailed(f"{revision!r} cannot name a revision; use letters, digits and . _ + -")
    names = _names_in(source)
    target = hub / model / revision
    target.parent.mkdir(parents=True, exist_ok=True)
    with _staging(target.parent) as staging:
        files = tuple(_copy(source, staging, name) for name in names)
        write_atomic(staging / MANIFEST_NAME, manifest_bytes(files))
        if target.exists():
            return Published(target, _same(target, files), is_new=False)
        for folder in sorted({(staging / name).parent for name in names} | {staging}, reverse=True):
            sync_folder(folder)
        staging.chmod(0o755)
        staging.rename(target)
    sync_folder(target.parent)
    return Published(target, files, is_new=True)


def _names_in(source: Path) -> list[str]:
    """Every file of the folder that is not hidden, by its name in the folder."""
    names = []
    for place, folders, found in os.walk(source, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*found, *(folder for folder in folders if (Path(place) / folder).is_symlink())):
            path = Path(place) / name
            if name.startswith(".") or path == source / MANIFEST_NAME:
                continue
            if path.is_symlink() or not path.is_file():
                raise CommandFailed(f"{path} is no regular file; publish a copy made with `cp -rL`")
            names.append(path.relative_to(source).as_posix())
    if not names:
        raise CommandFailed(f"{source} has no files")
    try:
        check_names(names)
    except ManifestBroken as error:
        raise CommandFailed(f"{source} cannot be published: {error}") from error
    return sorted(names)


def _copy(source: Path, staging: Path, name: str) -> BundleFile:
    """Copy one file through to the disk, and hash what was read."""
    path = staging / name
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed, size = hashlib.sha256(), 0
    with (source / name).open("rb") as reader, path.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            hashed.update(chunk)
            size += len(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return BundleFile(name, size, hashed.hexdigest())


def _same(target: Path, files: tuple[BundleFile, ...]) -> tuple[BundleFile, ...]:
    try:
        there = read_manifest(target)
    except (OSError, ManifestBroken) as error:
        raise CommandFailed(f"{target} is there and is no revision: {error}; move it away") from error
    if there != tuple(sorted(files, key=lambda file: file.name)):
        raise CommandFailed(f"{target.name} is published with other files; a revision never changes, use a new name")
    return there


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A hidden folder beside the target, gone afterwards unless it was renamed."""
    staging = Path(tempfile.mkdtemp(prefix=".adding-", dir=parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _raise(error: OSError) -> None:
    raise error
