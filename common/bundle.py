"""Sealed bundles and the committed pointer: the two small files by which the processes meet on disk."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.durable import exclusive, read_bounded, write_atomic
from common.provenance import Interface, Provenance, interface_of, provenance_of

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
POINTER_NAME = "committed.json"
POINTER_LOCK = ".committed.lock"
MAX_MANIFEST_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BundleBroken(ValueError):
    """A sealed bundle or the pointer is not what it should be; says what is wrong."""


class Origin(StrEnum):
    """Who moved the committed pointer."""

    UPDATE = "update"
    IMPORT = "import"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle."""

    name: str  # relative, of one part
    size: int  # bytes
    sha256: str  # 64 hexadecimal digits


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `bundle.json` says: everything a runner and an operator need to know of sealed files."""

    bundle_digest: str  # names the bundle
    source_digest: str  # names what the hub published
    revision: str  # for people
    engine: str
    task: str
    precision: str  # of the stored weights, for example "float32"
    converter: str  # version of the layout
    files: tuple[BundleFile, ...]
    notes: tuple[str, ...] = ()  # what people should know of how it answers, whole sentences
    interface: Interface | None = None  # None: of an older hotslot, or of an engine that does not say
    provenance: Provenance | None = None  # None: of an older hotslot

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors on disk, the plain estimate of what a load needs."""
        return sum(file.size for file in self.files if file.name.endswith(".safetensors"))


_PLAIN_KEYS = tuple(key for key in Bundle.__slots__ if key not in {"files", "notes", "interface", "provenance"})


@dataclass(frozen=True, slots=True)
class Committed:
    """One row of the committed pointer: what a restart loads for a model."""

    model: str
    bundle_digest: str
    source_digest: str
    revision: str
    origin: Origin


def source_digest(files: Sequence[BundleFile]) -> str:
    """Name what the hub published: SHA-256 over one line a declared file, sorted by name."""
    lines = sorted(f"{file.sha256} {file.size} {file.name}\n" for file in files)
    return _digest("".join(sorted(lines, key=lambda line: line.split(" ", 2)[2])).encode())


def bundle_digest(source: str, engine: str, converter: str, precision: str) -> str:
    """Name what a runner opens: the source, and all that decides how it was converted."""
    return _digest(f"{source}\n{engine}\n{converter}\n{precision}\n".encode())


def is_digest(text: str) -> bool:
    """Whether `text` has the form of a digest, so that it is safe as the name of a folder."""
    return _DIGEST.fullmatch(text) is not None


def bundle_folder(state: Path, digest: str) -> Path:
    """Folder of a sealed bundle; the colon stays out of file names."""
    if not is_digest(digest):
        raise BundleBroken(f"{digest[:80]!r} is no digest")
    return state / "bundles" / digest.replace(":", "-")


def read_bundle(folder: Path) -> Bundle:
    """Read the manifest of a sealed bundle and check that its files have the sizes it says.

    Raises:
        BundleBroken: it is not there, malformed, of a newer layout, or a file is missing or of another size.
    """
    row = _read_json(folder / MANIFEST_NAME)
    try:
        files = tuple(BundleFile(**file) for file in row.pop("files"))
        notes = tuple(map(str, row.pop("notes", ())))  # which older bundles lack
        said = row.get("interface"), row.get("provenance")
        interface = None if said[0] is None else interface_of(said[0])
        provenance = None if said[1] is None else provenance_of(said[1])
        plain = {key: row[key] for key in _PLAIN_KEYS}
        bundle = Bundle(files=files, notes=notes, interface=interface, provenance=provenance, **plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleBroken(f"{MANIFEST_NAME} is malformed: {error}") from error
    for file in bundle.files:
        if Path(file.name).name != file.name:
            raise BundleBroken(f"{MANIFEST_NAME} names {file.name[:80]!r}, which is not a plain name")
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise BundleBroken(f"{file.name} is missing or not of the size that {MANIFEST_NAME} says")
    return bundle


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Write the manifest of a bundle that is about to be sealed."""
    row = {"schema_version": SCHEMA_VERSION, **asdict(bundle)}
    write_atomic(folder / MANIFEST_NAME, _to_json(row))


def read_committed(state: Path) -> dict[str, Committed]:
    """What a restart would load, by model; empty if nothing was ever committed.

    Raises:
        BundleBroken: the pointer is there and malformed.
    """
    path = state / POINTER_NAME
    if not path.exists():
        return {}
    row = _read_json(path)
    try:
        rows = [Committed(**{**entry, "origin": Origin(entry["origin"])}) for entry in row["models"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleBroken(f"{POINTER_NAME} is malformed: {error}") from error
    for entry in rows:
        if not is_digest(entry.bundle_digest):
            raise BundleBroken(f"{POINTER_NAME} names {entry.bundle_digest[:80]!r}, which is no digest")
    return {entry.model: entry for entry in rows}


def write_committed(state: Path, rows: Mapping[str, Committed]) -> None:
    """Move the committed pointer; atomic, so that a crash leaves the old or the new one."""
    models = [asdict(rows[model]) for model in sorted(rows)]
    write_atomic(state / POINTER_NAME, _to_json({"schema_version": SCHEMA_VERSION, "models": models}))


def commit(state: Path, row: Committed) -> None:
    """Move one model's row of the committed pointer; the rows of the others stay, whoever moves them meanwhile.

    Raises:
        BundleBroken: the pointer is there and malformed.
        OSError: it cannot be written; nothing has moved.
    """
    with exclusive(state / POINTER_LOCK):
        write_committed(state, {**read_committed(state), row.model: row})


def hash_file(path: Path) -> BundleFile:
    """Size and SHA-256 of a file as it lies on disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return BundleFile(name=path.name, size=size, sha256=digest)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(read_bounded(path, MAX_MANIFEST_BYTES))
    except (OSError, ValueError) as error:
        raise BundleBroken(f"{path.name} cannot be read: {type(error).__name__}") from error
    if not isinstance(row, dict):
        raise BundleBroken(f"{path.name} is no object")
    version = row.pop("schema_version", None)
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise BundleBroken(f"{path.name} has schema version {version!r}, this build reads 1 to {SCHEMA_VERSION}")
    return row


def _to_json(row: Mapping[str, object]) -> bytes:
    return json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n"


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
