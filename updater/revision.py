"""Which of a revision's files are taken: only what the engine of its configuration declares."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.bundle import BundleFile, compute_source_digest
from common.durable import NotRegular
from common.engine_files import CONFIGURATION, EngineFiles, FilesMissing, find_engine, list_declared_files, list_shards
from common.source import ManifestBroken, check_names
from updater.core.facts import HubFile, Release

INDEX_SUFFIX = ".index.json"


class NotServable(ValueError):
    """No engine of this build serves a revision, or it lacks files; it will not get better by waiting.

    Attributes:
        reason: for machines.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Declared:
    """What an engine takes of a revision."""

    engine: EngineFiles
    names: tuple[str, ...]  # sorted


def declared(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Declared:
    """Find the engine of a revision, and the files that it takes.

    Args:
        sizes: size of every listed file by its name.
        read: content of a small file of the revision; may raise what it likes.

    Raises:
        NotServable: it cannot be served by this build.
    """
    if CONFIGURATION not in sizes:
        raise NotServable("FILES_MISSING", f"the revision lacks {CONFIGURATION}")
    configuration = parse_object(read(CONFIGURATION), CONFIGURATION)
    engine = engine_of(configuration)
    try:
        names = list_declared_files(engine, sizes, configuration)
        for index in [name for name in names if name.endswith(INDEX_SUFFIX)]:
            names += list_shards(parse_object(read(index), index))
    except FilesMissing as error:
        raise NotServable("FILES_MISSING", str(error)) from error
    missing = [name for name in names if name not in sizes]
    if missing:
        raise NotServable("FILES_MISSING", f"the revision lacks {missing[0][:80]!r}")
    nested = [name for name in names if "/" in name]
    if nested:
        raise NotServable("UNSAFE_NAME", f"{nested[0][:80]!r} is named, and only plain names are taken")
    return Declared(engine, tuple(sorted(set(names))))


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
    all_of_it = Release(revision, tuple(map(_as_listed, listed)), compute_source_digest(listed))
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
    digest = compute_source_digest([rows[name] for name in names])
    missing = next((gap for gap in (missing_of(rows[name]) for name in names) if gap), "")
    files = tuple(_as_listed(file) for file in listed if file.sha256 or file.name in names)
    return Release(revision, files, digest, is_ready=not missing, missing=missing)


def _encodable(file: BundleFile) -> BundleFile:
    """JSON can hold half of a pair of code units, which no file name and no digest can: shown as what it is."""
    name, sha256 = (text.encode(errors="backslashreplace").decode() for text in (file.name, file.sha256))
    return BundleFile(name, file.size, sha256)


def _as_listed(file: BundleFile) -> HubFile:
    return HubFile(file.name, file.size, file.sha256)


def engine_of(configuration: Mapping[str, Any]) -> EngineFiles:
    """The engine that serves a configuration's task and model type.

    Raises:
        NotServable: this build has none.
    """
    model = configuration.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    task = configuration.get("task")
    engine = find_engine(str(task), str(model_type))
    if engine is None:
        sentence = f"{CONFIGURATION}: task {str(task)[:80]!r}, model.type {str(model_type)[:80]!r} has no engine here"
        raise NotServable("ENGINE_UNKNOWN", sentence)
    return engine


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        NotServable: it is none.
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise NotServable("CONFIG_BROKEN", f"{name} is no JSON") from error
    if not isinstance(row, dict):
        raise NotServable("CONFIG_BROKEN", f"{name} holds no object")
    return row
