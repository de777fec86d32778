"""Describes a revision from its listing: engine, declared files, digest, and whether it is complete."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.bundle import BundleFile, compute_source_digest
from common.durable import NotRegular
from common.engine_files import CONFIGURATION, EngineFiles, FilesMissing, find_engine, list_declared_files, list_shards
from common.json_text import JsonBroken, parse_object
from common.source import ManifestBroken, check_names
from updater.core.facts import HubFile, Release

INDEX_SUFFIX = ".index.json"


class UnsupportedRevision(ValueError):
    """No engine of this build supports the revision, or files are missing from its listing; waiting does not help.

    Attributes:
        reason: for machines.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DeclaredFiles:
    """An engine, and the files of a revision that it declares."""

    engine: EngineFiles
    names: tuple[str, ...]  # sorted


def find_declared_files(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> DeclaredFiles:
    """Find the engine of a revision, and the files that the engine declares.

    Args:
        sizes: size of every listed file, by name.
        read: returns the content of a small file of the revision; its exceptions pass through.

    Raises:
        UnsupportedRevision: this build cannot serve it.
    """
    if CONFIGURATION not in sizes:
        raise UnsupportedRevision("FILES_MISSING", f"the revision lacks {CONFIGURATION}")
    configuration = parse_json_object(read(CONFIGURATION), CONFIGURATION)
    engine = select_engine(configuration)
    try:
        names = list_declared_files(engine, sizes, configuration)
        for index in [name for name in names if name.endswith(INDEX_SUFFIX)]:
            names += list_shards(parse_json_object(read(index), index))
    except FilesMissing as error:
        raise UnsupportedRevision("FILES_MISSING", str(error)) from error
    missing = [name for name in names if name not in sizes]
    if missing:
        raise UnsupportedRevision("FILES_MISSING", f"the revision lacks {missing[0][:80]!r}")
    nested = [name for name in names if "/" in name]
    if nested:
        raise UnsupportedRevision(
            "UNSAFE_NAME", f"{nested[0][:80]!r} is in a folder, and only top-level files are supported"
        )
    return DeclaredFiles(engine, tuple(sorted(set(names))))


class IncompleteFile(Exception):
    """A configuration file or weights index, needed to find the declared files, is incomplete on the hub."""


def describe_release(
    revision: str,
    listed: Sequence[BundleFile],
    read: Callable[[BundleFile], bytes],
    missing_of: Callable[[BundleFile], str],
) -> Release:
    """Build the `Release` of a revision from its listing.

    Args:
        revision: name on the hub.
        listed: files as listed, not checked yet. A missing hash is empty.
        read: returns the content of a small file. May raise IncompleteFile, or UnsupportedRevision if the content is
            not what was listed.
        missing_of: returns what is missing of a file, for people; empty if it is complete.

    Returns:
        If no engine supports the revision, or its names are unsafe: all files and their digest, which identifies it;
        staging then reports the reason. Otherwise the digest covers only the declared files, and undeclared files
        without a hash are left out. If a declared file has no hash, the source digest is empty, and `listing` is the
        digest of what is listed.
    """
    listed = [_escape_surrogates(file) for file in listed]
    all_of_it = Release(revision, tuple(map(_to_hub_file, listed)), compute_source_digest(listed))
    try:
        check_names([file.name for file in listed])
    except ManifestBroken:
        return all_of_it  # no path is made of these names
    rows = {file.name: file for file in listed}
    try:
        declared = find_declared_files({name: row.size for name, row in rows.items()}, lambda name: read(rows[name]))
    except IncompleteFile as error:
        return Release(revision, all_of_it.files, "", is_ready=False, missing=str(error))
    except (UnsupportedRevision, NotRegular):
        return all_of_it
    names = declared.names
    digest = compute_source_digest([rows[name] for name in names])
    missing = next((gap for gap in (missing_of(rows[name]) for name in names) if gap), "")
    files = tuple(_to_hub_file(file) for file in listed if file.sha256 or file.name in names)
    if not all(rows[name].sha256 for name in names):
        return Release(revision, files, "", is_ready=not missing, missing=missing, listing=digest)
    former = compute_source_digest([rows[name] for name in names if name not in declared.engine.added])
    former = former if former != digest else ""
    return Release(revision, files, digest, is_ready=not missing, missing=missing, former_digest=former)


def _escape_surrogates(file: BundleFile) -> BundleFile:
    """Escape lone surrogates: JSON can contain them, file names and digests cannot."""
    name, sha256 = (text.encode(errors="backslashreplace").decode() for text in (file.name, file.sha256))
    return BundleFile(name, file.size, sha256)


def _to_hub_file(file: BundleFile) -> HubFile:
    return HubFile(file.name, file.size, file.sha256)


def select_engine(configuration: Mapping[str, Any]) -> EngineFiles:
    """The engine for the task and model type of a configuration.

    Raises:
        UnsupportedRevision: this build has no engine for them.
    """
    model = configuration.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    task = configuration.get("task")
    engine = find_engine(str(task), str(model_type))
    if engine is None:
        sentence = (
            f"{CONFIGURATION}: task {str(task)[:80]!r}, model.type {str(model_type)[:80]!r} has no engine in this build"
        )
        raise UnsupportedRevision("ENGINE_UNKNOWN", sentence)
    return engine


def parse_json_object(raw: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        UnsupportedRevision: the content is not a JSON object.
    """
    try:
        return parse_object(raw, name)
    except JsonBroken as error:
        raise UnsupportedRevision("CONFIG_BROKEN", str(error)) from error
