"""From a list of files to a release: which of them count, what they are together, and whether they are there."""

from collections.abc import Callable, Sequence

from common.bundle import BundleFile, source_digest
from common.published import ManifestBroken, check_names
from common.regular import NotRegular
from updater.declared import NotServable, declared
from updater.ports import HubFile, Release


class StillArriving(Exception):
    """A file that must be read to know which others count is not there in full; says what is missing."""


def release_of(
    revision: str,
    listed: Sequence[BundleFile],
    read: Callable[[BundleFile], bytes],
    missing_of: Callable[[BundleFile], str],
) -> Release:
    """Describe a revision by its list of files.

    Args:
        revision: its name.
        listed: as the hub lists them; nothing is checked yet. A hash that the hub does not give is empty.
        read: content of a small file. May raise StillArriving, or NotServable where it is not what was listed.
        missing_of: what is not there yet of a file, for people; empty if nothing.

    Returns:
        Where no engine takes it, or its names are not safe: all files and their digest, to be remembered by; staging
        says what is wrong with it. Else the digest is that of the declared files alone, and a file that no engine
        takes need not have a hash: without one it is left out.
    """
    listed = [_encodable(file) for file in listed]
    all_of_it = Release(revision, tuple(map(_as_listed, listed)), source_digest(listed))
    try:
        check_names([file.name for file in listed])
    except ManifestBroken:
        return all_of_it  # never a path of ours
    rows = {file.name: file for file in listed}
    try:
        names = declared({name: row.size for name, row in rows.items()}, lambda name: read(rows[name])).names
    except StillArriving as error:
        return Release(revision, all_of_it.files, "", is_ready=False, missing=str(error))
    except (NotServable, NotRegular):
        return all_of_it
    digest = source_digest([rows[name] for name in names])
    missing = next((gap for gap in (missing_of(rows[name]) for name in names) if gap), "")
    files = tuple(_as_listed(file) for file in listed if file.sha256 or file.name in names)
    return Release(revision, files, digest, is_ready=not missing, missing=missing)


def _encodable(file: BundleFile) -> BundleFile:
    """JSON can hold half of a pair of code units, which no file name and no digest can: shown as what it is."""
    name, sha256 = (text.encode(errors="backslashreplace").decode() for text in (file.name, file.sha256))
    return BundleFile(name, file.size, sha256)


def _as_listed(file: BundleFile) -> HubFile:
    return HubFile(file.name, file.size, file.sha256)
