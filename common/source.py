"""A published folder: its file list, engine, declared files and source digest.

The converting child imports this module, so it uses only the standard library.
"""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.bundle import BundleFile, compute_bundle_digest, compute_source_digest, hash_file
from common.durable import NotRegular, read_bounded, read_within
from common.engine_files import (
    CONFIGURATION,
    ENGINES,
    MAX_CONFIG_BYTES,
    EngineFiles,
    FilesMissing,
    find_engine,
    list_declared_files,
    list_shards,
)
from common.json_load import load_json
from common.json_text import parse_object
from common.missing_files import describe_missing, describe_odd_files

MANIFEST_NAME = "hotslot-manifest.json"
LISTING_SCHEMA = 1
MAX_MANIFEST_BYTES = 2 << 20
MAX_FILES = 2000  # that an engine may declare
MAX_LISTED_FILES = 20_000
MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255
MAX_FILE_BYTES = 1 << 40
# Files that an engine may declare are at the top level and have one of these suffixes.
_TAKEN_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")
_JOINERS = "\u00ad\u200c\u200d"  # invisible, and ordinary in names of people's pictures
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories
_MAX_SHOWN = 5  # names in a note
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestBroken(ValueError):
    """A revision's list of files is malformed or unsafe; the message says how."""


def is_revision_name(text: str) -> bool:
    """Whether `text` is an allowed name of a revision, and therefore safe as the name of a folder."""
    return _REVISION.fullmatch(text) is not None


def check_names(names: Sequence[str]) -> None:
    """Check names of files against rules 1, 2, 3 and 5 of docs/verification.md.

    Names that no engine declares are never written to disk: they may differ in case alone, may have a joiner, and there
    may be more of them (see `describe_odd_names`).

    Raises:
        ManifestBroken: a name is unsafe or appears twice, or there are too many.
    """
    taken = [name for name in names if _may_be_declared(name)]
    for found, limit in ((taken, MAX_FILES), (names, MAX_LISTED_FILES)):
        if len(found) > limit:  # rule 5
            raise ManifestBroken(f"{len(found)} files are listed, at most {limit} are allowed")
    for name in names:
        fault = _fault_of(name)
        if fault:
            raise ManifestBroken(f"the name {name[:80]!r} {fault}")
    seen: set[str] = set()
    for name in taken:
        if _fold(name) in seen:  # rule 3
            raise ManifestBroken(f"the name {name[:80]!r} appears twice")
        seen.add(_fold(name))


def describe_odd_names(names: Sequence[str]) -> tuple[str, ...]:
    """Notes about listed names that are ignored, although they would be refused if an engine declared them."""
    ignored = [name for name in names if not _may_be_declared(name)]
    counts = Counter(map(_fold, ignored))
    twins = [name for name in ignored if counts[_fold(name)] > 1]
    joined = [name for name in ignored if any(letter in _JOINERS for letter in name)]
    notes = []
    if twins:
        notes.append(f"{_quote(twins)} differ in case or Unicode form alone; they are not fetched")
    if joined:
        notes.append(f"{_quote(joined)}: names with invisible characters are not fetched")
    if len(names) > MAX_FILES:
        notes.append(f"{len(names)} files are listed; only those that the engine declares are fetched")
    return tuple(notes)


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(ascii(name[:80]) for name in names[:_MAX_SHOWN]) + more


def _may_be_declared(name: str) -> bool:
    return "/" not in name and name.lower().endswith(_TAKEN_SUFFIXES)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def check_files(files: Sequence[BundleFile]) -> None:
    """Check names, sizes and hashes of a list of files.

    Raises:
        ManifestBroken: one of them is not allowed.
    """
    check_names([file.name for file in files])
    for file in files:
        if not 0 <= file.size <= MAX_FILE_BYTES:  # rule 4
            raise ManifestBroken(f"{file.name!r} has the size {file.size}")
        if _SHA256.fullmatch(file.sha256) is None:
            raise ManifestBroken(f"the SHA-256 of {file.name!r} is not 64 hexadecimal digits in lower case")


def read_manifest(folder: Path) -> tuple[BundleFile, ...]:
    """Read and check the list of files of a published revision, sorted by name.

    Raises:
        FileNotFoundError: the folder has no manifest, so it is not a revision of a folder hub.
        OSError: the manifest cannot be read.
        ManifestBroken: the manifest is malformed, unsafe or of a newer schema.
    """
    files = read_listing(folder)
    check_files(files)
    return files


def read_listing(folder: Path) -> tuple[BundleFile, ...]:
    """Read the list of files of a published revision without checking names, sizes and hashes; sorted by name.

    Raises:
        FileNotFoundError: the folder has no manifest, so it is not a revision of a folder hub.
        OSError: the manifest cannot be read, or is no regular file with one link (`NotRegular`).
        ManifestBroken: the manifest is malformed or of a newer schema.
    """
    return _parse_listing(lambda: read_within(folder, MANIFEST_NAME, MAX_MANIFEST_BYTES))


def read_listing_file(path: Path) -> tuple[BundleFile, ...]:
    """Like `read_listing`, from the path of the manifest.

    Raises:
        OSError, ManifestBroken: see `read_listing`.
    """
    return _parse_listing(lambda: read_bounded(path, MAX_MANIFEST_BYTES))


def _parse_listing(read: Callable[[], bytes]) -> tuple[BundleFile, ...]:
    try:
        row = load_json(read())
    except ValueError as error:
        raise ManifestBroken(f"{MANIFEST_NAME} is not JSON of at most {MAX_MANIFEST_BYTES} bytes") from error
    version = row.get("schema_version") if isinstance(row, dict) else None
    if version != LISTING_SCHEMA or not isinstance(row.get("files"), list):
        raise ManifestBroken(f"{MANIFEST_NAME} has schema version {version!r}, this build reads {LISTING_SCHEMA}")
    files = tuple(_file_of(entry) for entry in row["files"])
    return tuple(sorted(files, key=lambda file: file.name))


def encode_manifest(files: Sequence[BundleFile]) -> bytes:
    """The content of a manifest for these files."""
    check_files(files)
    rows = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in files]
    row = {"schema_version": LISTING_SCHEMA, "files": sorted(rows, key=lambda entry: str(entry["name"]))}
    return json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n"


def _file_of(entry: object) -> BundleFile:
    if isinstance(entry, dict):
        name, size, sha256 = entry.get("name"), entry.get("size"), entry.get("sha256")
        if isinstance(name, str) and type(size) is int and isinstance(sha256, str):
            return BundleFile(name, size, sha256)
    raise ManifestBroken(f"{MANIFEST_NAME} has an entry without name, size and sha256")


def _fault_of(name: str) -> str:
    """What is wrong with the name of a file; empty if nothing is."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):  # rule 1
        return "is not a plain relative path"
    if "\\" in name or (name[1:2] == ":" and name[0].isalpha()):  # rule 2
        return "has a backslash or a drive letter"
    allowed = "" if _may_be_declared(name) else _JOINERS
    if any(unicodedata.category(letter) in _CONTROLS and letter not in allowed for letter in name):
        return "has a control character"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return "is too long"
    return ""


PRECISIONS = ("float32", "bfloat16")
_INDEX_SUFFIX = ".index.json"


class ConversionRefused(ValueError):
    """A published folder cannot be converted into a bundle.

    Attributes:
        reason: for programs, for example "CONFIG_UNSUPPORTED", "WEIGHTS_BROKEN", "TIME_LIMIT".
        needed_bytes: of memory, if that is the reason ("DOES_NOT_FIT"); else 0.
        free_bytes: of memory, likewise; -1 if it is not known.
        file: that is refused; empty if it is no single one.
    """

    def __init__(
        self, reason: str, message: str, needed_bytes: int = 0, free_bytes: int = -1, *, file: str = ""
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.file = file
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


@dataclass(frozen=True, slots=True)
class Source:
    """A published folder with the engine that serves it."""

    folder: Path
    engine: EngineFiles
    names: tuple[str, ...]  # of the declared files, sorted
    size: int  # bytes of these files

    def digest(self) -> str:
        """Compute the source digest: reads and hashes every declared file.

        Raises:
            ConversionRefused: a file cannot be read.
        """
        try:
            return compute_source_digest([hash_file(self.folder / name) for name in self.names])
        except OSError as error:
            raise refuse_unreadable(error, self.folder) from error

    def bundle_digest(self, digest: str, precision: str) -> str:
        """The digest of the bundle that this source with the source digest `digest` is converted into."""
        return compute_bundle_digest(digest, self.engine.engine, self.engine.converter, precision)


def find_source(folder: Path) -> Source:
    """Find the engine of a published folder and the files that it declares; reads only configuration files.

    Raises:
        ConversionRefused: this build has no engine for it, or files are missing.
    """
    engine: EngineFiles | None = None
    try:
        configuration = _read_object(folder, CONFIGURATION)
        engine = _engine_of(configuration)
        names = _declared_names(folder, engine, configuration)
        size = sum((folder / name).stat().st_size for name in names)
    except FilesMissing as error:
        raise ConversionRefused("FILES_MISSING", describe_missing(folder, str(error), engine)) from error
    except OSError as error:
        raise refuse_unreadable(error, folder) from error
    return Source(folder, engine, tuple(names), size)


def refuse_unreadable(error: OSError, folder: Path) -> ConversionRefused:
    """The refusal of a published folder of which something cannot be read; it names the file if it is known."""
    name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else ""
    if not os.access(folder, os.R_OK | os.X_OK):
        message = "the folder cannot be read by this user (permission denied): chmod o+rx DIR"
        return ConversionRefused("SOURCE_UNREADABLE", message)
    if isinstance(error, PermissionError) and name:
        message = f"{name} cannot be read by this user (permission denied): chmod o+r {name}"
    else:
        message = f"{name or 'the folder'} cannot be read: {error.strerror or error}"
        message = (isinstance(error, NotRegular) and describe_odd_files(folder, str(error))) or message
    return ConversionRefused("SOURCE_UNREADABLE", message, file=name)


def _engine_of(configuration: Mapping[str, object]) -> EngineFiles:
    model = configuration.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    engine = find_engine(str(configuration.get("task")), str(model_type))
    if engine is None:
        served = "; ".join(f"{one.task} with {' or '.join(sorted(one.model_types))}" for one in ENGINES)
        message = f"{CONFIGURATION}{_describe_task(configuration, model_type)}; supported: {served}"
        raise ConversionRefused("ENGINE_UNKNOWN", message, file=CONFIGURATION)
    return engine


def _describe_task(configuration: Mapping[str, object], model_type: object) -> str:
    """The rest of a sentence about a task and a kind of model that no engine serves."""
    if "task" not in configuration and "model" not in configuration:
        exchanged = (
            "; its keys are those of config.json: are the two files exchanged?" if "model_type" in configuration else ""
        )
        return f" lacks task and model.type{exchanged}"
    lacking = [
        name for name, value in (("task", configuration.get("task")), ("model.type", model_type)) if value is None
    ]
    if lacking:
        return f" lacks {' and '.join(lacking)}"
    task = configuration.get("task")
    near = [
        one
        for one in ENGINES
        if _plain(task) == _plain(one.task) and _plain(model_type) in map(_plain, one.model_types)
    ]
    meant = f": did you mean {near[0].task} with {near[0].model_types[0]}?" if near else ""
    return f": task {task!r} with model.type {model_type!r} has no engine"[:400] + meant


def _plain(value: object) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(letter for letter in str(value).lower() if letter.isalnum())


def _declared_names(folder: Path, engine: EngineFiles, configuration: Mapping[str, object]) -> list[str]:
    """The files that the engine needs, with shards, sorted."""
    listing = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    names = list_declared_files(engine, listing, configuration)
    for index in [name for name in names if name.endswith(_INDEX_SUFFIX)]:
        names += list_shards(_read_object(folder, index))
    for name in names:
        if Path(name).name != name or name not in listing:  # rule 1
            raise FilesMissing(f"the weights' index names {name[:80]!r}, which is not in the folder: publish it too")
    return sorted(set(names))


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    try:
        return parse_object(read_bounded(folder / name, MAX_CONFIG_BYTES), name)
    except FileNotFoundError as error:
        raise FilesMissing(f"the revision lacks {name}") from error
    except ValueError as error:  # not JSON, or too large
        raise ConversionRefused("CONFIG_BROKEN", str(error), file=name) from error
