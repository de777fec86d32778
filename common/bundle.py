"""`bundle.json`, the manifest of a sealed bundle, and `committed.json`, the pointer to what a restart loads."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.durable import (
    NotRegular,
    has_size,
    hold_lock,
    open_regular,
    read_bounded,
    read_start,
    write_atomic,
    write_or_put_back,
)
from common.json_load import load_json
from common.schema import describe_schema

MANIFEST_NAME, BUNDLE_SCHEMA = "bundle.json", 1
POINTER_NAME, POINTER_SCHEMA = "committed.json", 1
POINTER_LOCK = ".committed.lock"
BROKEN_POINTER_NAME = f"{POINTER_NAME}.broken"  # the last malformed pointer that was replaced
POINTER_WAIT_SECONDS = 30.0  # longest wait for another writer of the pointer, or for garbage collection
MAX_MANIFEST_BYTES = 1 << 20
CONVERSION_CHECK = "14 weights and configuration"  # see docs/verification.md
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_BYTES = re.compile(_DIGEST.pattern.encode())


class BundleBroken(ValueError):
    """A sealed bundle or the pointer is missing or malformed; the message says how."""


class SchemaTooNew(BundleBroken):
    """A newer hotslot wrote it: it is whole, and this build must leave it as it is."""


class Origin(StrEnum):
    """The cause of a change of the committed pointer."""

    UPDATE = "update"
    IMPORT = "import"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle."""

    name: str  # without a folder
    size: int  # bytes
    sha256: str  # 64 hexadecimal digits


class HubKind(StrEnum):
    """Where a revision came from."""

    FOLDER = "folder"  # a folder hub
    MODELSCOPE = "modelscope"  # a hub that speaks ModelScope's protocol
    IMPORT = "import"  # a folder, with `hotslot bundle import`


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A model on a hub."""

    kind: HubKind
    model: str  # its name on the hub, for example "iic/ofa_visual-entailment_snli-ve_large_en"
    endpoint: str = ""  # host, with the port if it is not the default; empty for a folder


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the files of a bundle came from, and the checks that they passed. For people; no digest covers it."""

    place: HubLocation
    revision: str  # its name on the hub when it was fetched
    fetched_at: str  # RFC 3339, UTC, by the local wall clock
    verified_at: str  # the same; empty if the checks did not run (`hotslot bundle import`)
    checked: tuple[str, ...]  # numbers and names of the checks at that time; see docs/verification.md


@dataclass(frozen=True, slots=True)
class Interface:
    """Properties that must not change between revisions, since callers depend on them."""

    model_type: str  # `model.type` of the source's configuration
    picture_size: int  # pixels; pictures are scaled to this width and height; 0 if the model takes none
    labels: tuple[str, ...]  # in the order of the model's label numbers


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of `bundle.json`: what a runner and an operator need to know about sealed files."""

    bundle_digest: str  # identifies the bundle
    source_digest: str  # identifies the published files
    revision: str  # for people
    engine: str
    task: str
    precision: str  # of the stored weights, for example "float32"
    converter: str  # version of the layout
    files: tuple[BundleFile, ...]
    notes: tuple[str, ...] = ()  # remarks about its answers, for people, in whole sentences
    interface: Interface | None = None  # None: sealed by an older hotslot, or the engine declares none
    provenance: Provenance | None = None  # None: sealed by an older hotslot

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights on disk: the estimate of the memory that a load needs."""
        return sum(file.size for file in self.files if file.name.endswith(".safetensors"))


_PLAIN_KEYS = tuple(key for key in Bundle.__slots__ if key not in {"files", "notes", "interface", "provenance"})


@dataclass(frozen=True, slots=True)
class Committed:
    """One row of the committed pointer: the bundle that a restart loads for a model."""

    model: str
    bundle_digest: str
    source_digest: str
    revision: str
    origin: Origin


def compute_source_digest(files: Sequence[BundleFile]) -> str:
    """The digest of published files: SHA-256 over one line for each declared file, sorted by name."""
    lines = sorted(f"{file.sha256} {file.size} {file.name}\n" for file in files)
    return _digest("".join(sorted(lines, key=lambda line: line.split(" ", 2)[2])).encode())


def compute_bundle_digest(source: str, engine: str, converter: str, precision: str) -> str:
    """The digest of a bundle: of its source and of everything that decides how it was converted."""
    return _digest(f"{source}\n{engine}\n{converter}\n{precision}\n".encode())


def is_digest(text: str) -> bool:
    """Whether `text` is a well-formed digest, and therefore safe in the name of a folder."""
    return _DIGEST.fullmatch(text) is not None


def bundle_folder(state: Path, digest: str) -> Path:
    """The folder of a sealed bundle: `sha256-…`, without the colon of the digest."""
    if not is_digest(digest):
        raise BundleBroken(f"{digest[:80]!r} is not a digest")
    return state / "bundles" / digest.replace(":", "-")


def read_bundle(folder: Path) -> Bundle:
    """Read the manifest of a sealed bundle, and check the names and sizes of its files.

    Raises:
        BundleBroken: it is missing, malformed or of a newer layout, or a file is missing or of another size.
        OSError: it cannot be read now.
    """
    row = _read_json(folder / MANIFEST_NAME, BUNDLE_SCHEMA)
    try:
        files = tuple(BundleFile(**file) for file in row.pop("files"))
        notes = tuple(map(str, row.pop("notes", ())))  # older bundles have none
        parts = row.get("interface"), row.get("provenance")
        interface = None if parts[0] is None else parse_interface(parts[0])
        provenance = None if parts[1] is None else parse_provenance(parts[1])
        plain = {key: row[key] for key in _PLAIN_KEYS}
        bundle = Bundle(files=files, notes=notes, interface=interface, provenance=provenance, **plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleBroken(f"{MANIFEST_NAME} is malformed: {error}") from error
    for file in bundle.files:
        if Path(file.name).name != file.name:
            raise BundleBroken(f"{MANIFEST_NAME} names {file.name[:80]!r}, which is not a plain file name")
        if not has_size(folder / file.name, file.size):
            raise BundleBroken(f"{file.name} is missing or has not the size in {MANIFEST_NAME}")
    return bundle


def write_bundle(folder: Path, bundle: Bundle) -> None:
    """Write the manifest into the folder of a bundle that will be sealed."""
    row = {"schema_version": BUNDLE_SCHEMA, **asdict(bundle)}
    write_atomic(folder / MANIFEST_NAME, _to_json(row))


def read_committed(state: Path) -> dict[str, Committed]:
    """The rows of the committed pointer by model; empty if nothing was committed yet.

    Raises:
        BundleBroken: the pointer is malformed, or of a newer schema (`SchemaTooNew`).
        OSError: it cannot be read now; that says nothing about what it names.
    """
    try:
        content = _read_content(state / POINTER_NAME)
    except FileNotFoundError:
        return {}
    row = _parse_json(content, POINTER_NAME, POINTER_SCHEMA)
    try:
        rows = [Committed(**{**entry, "origin": Origin(entry["origin"])}) for entry in row["models"]]
        wrong = next((entry for entry in rows if not is_digest(entry.bundle_digest)), None)
        found = {entry.model: entry for entry in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise BundleBroken(f"{POINTER_NAME} is malformed: {error}") from error
    if wrong is not None:
        raise BundleBroken(f"{POINTER_NAME} names {wrong.bundle_digest[:80]!r}, which is not a digest")
    return found


def read_replaced_digests(state: Path) -> frozenset[str]:
    """The digests in the malformed pointer that was replaced last: a person may want back what its rows name.

    Raises:
        OSError: it cannot be read now.
    """
    content = b""
    with contextlib.suppress(FileNotFoundError, NotRegular):
        content = read_start(state / BROKEN_POINTER_NAME, MAX_MANIFEST_BYTES)
    return frozenset(digest.decode() for digest in _DIGEST_BYTES.findall(content))


def lock_pointer(state: Path, wait_seconds: float = POINTER_WAIT_SECONDS) -> AbstractContextManager[None]:
    """Lock the committed pointer: no other process or thread changes it until the block ends.

    Raises:
        LockTimeout: another writer did not release the lock in time.
        OSError: the lock file cannot be opened.
    """
    return hold_lock(state / POINTER_LOCK, wait_seconds)


def update_pointer(
    state: Path,
    model: str,
    change: Callable[[Committed | None], Committed | None],
    *,
    replace_broken: bool = False,
    wait_seconds: float = POINTER_WAIT_SECONDS,
) -> Committed | None:
    """Change one model's row of the committed pointer durably; returns the previous row.

    It reads, changes and writes under one file lock, so that concurrent changes of other models' rows are kept. A crash
    leaves the old pointer or the new one. The only other writer is `restore_pointer`, under the same lock.

    Args:
        state: hotslot's own folder.
        model: name of the model.
        change: returns the new row for the current one; None means no row. Called under the lock. If it raises, or
            returns the current row, nothing is written.
        replace_broken: replace a malformed pointer by one with this row alone, instead of raising; the malformed one is
            kept as BROKEN_POINTER_NAME.
        wait_seconds: longest wait for the lock.

    Raises:
        BundleBroken: the pointer is malformed, or of a newer schema, which is never replaced.
        LockTimeout: another writer did not release the lock in time.
        OSError: the pointer cannot be read, or not be written durably; the old one is kept, or put back unless it was
            malformed.
    """
    with lock_pointer(state, wait_seconds):
        rows, is_broken = _rows_to_change(state, replace_broken=replace_broken)
        before = rows.pop(model, None)
        after = change(before)
        if after is not None:
            rows[model] = after
        if is_broken:
            _keep_broken(state)
        if after != before or is_broken:
            write_or_put_back(state / POINTER_NAME, render_pointer(rows), MAX_MANIFEST_BYTES)
    return before


def render_pointer(rows: Mapping[str, Committed]) -> bytes:
    """The content of a committed pointer with these rows, by model."""
    return _to_json({"schema_version": POINTER_SCHEMA, "models": [asdict(rows[name]) for name in sorted(rows)]})


def restore_pointer(state: Path, content: bytes, wait_seconds: float = POINTER_WAIT_SECONDS) -> None:
    """Replace the whole committed pointer by that of a backup, under the lock of all its writers.

    Raises:
        LockTimeout: another writer did not release the lock in time.
        OSError: it cannot be written durably; the old one is kept, or put back if it could be read.
    """
    with lock_pointer(state, wait_seconds):
        write_or_put_back(state / POINTER_NAME, content, MAX_MANIFEST_BYTES, unreadable=OSError)


def parse_provenance(row: Mapping[str, Any]) -> Provenance:
    """The inverse of `dataclasses.asdict` for a `Provenance`.

    Raises:
        KeyError, TypeError, ValueError: the row is malformed.
    """
    place = parse_hub_location(row["place"])
    plain = {key: str(row[key]) for key in ("revision", "fetched_at", "verified_at")}
    return Provenance(place=place, checked=tuple(map(str, row["checked"])), **plain)


def parse_hub_location(row: Mapping[str, Any]) -> HubLocation:
    """The inverse of `dataclasses.asdict` for a `HubLocation`.

    Raises:
        KeyError, TypeError, ValueError: the row is malformed.
    """
    return HubLocation(HubKind(row["kind"]), str(row["model"]), str(row["endpoint"]))


def format_rfc3339(at: datetime) -> str:
    """A time in RFC 3339: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_interface(row: Mapping[str, Any]) -> Interface:
    """The inverse of `dataclasses.asdict` for an `Interface`.

    Raises:
        KeyError, TypeError, ValueError: the row is malformed.
    """
    return Interface(str(row["model_type"]), int(row["picture_size"]), tuple(map(str, row["labels"])))


def hash_file(path: Path) -> BundleFile:
    """Read a file and return its name, size and SHA-256."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return BundleFile(name=path.name, size=size, sha256=digest)


def _rows_to_change(state: Path, *, replace_broken: bool) -> tuple[dict[str, Committed], bool]:
    """The rows of the pointer, and whether it was malformed."""
    try:
        return read_committed(state), False
    except BundleBroken as error:
        if isinstance(error, SchemaTooNew) or not replace_broken:
            raise
        return {}, True


def _keep_broken(state: Path) -> None:
    """Keep the malformed pointer for people, in place of the one before: it may have rows that no journal has."""
    with contextlib.suppress(NotRegular):  # a pipe or a link to itself has nothing to keep
        write_atomic(state / BROKEN_POINTER_NAME, read_start(state / POINTER_NAME, MAX_MANIFEST_BYTES))


def _read_json(path: Path, newest: int) -> dict[str, Any]:
    try:
        content = _read_content(path)
    except FileNotFoundError as error:
        raise BundleBroken(f"{path.name} cannot be read: {type(error).__name__}") from error
    return _parse_json(content, path.name, newest)


def _read_content(path: Path) -> bytes:
    """The whole file; one that cannot be a manifest at all, whenever it is read, is broken."""
    try:
        return read_bounded(path, MAX_MANIFEST_BYTES)
    except (NotRegular, ValueError) as error:
        raise BundleBroken(f"{path.name} cannot be read: {type(error).__name__}") from error


def _parse_json(content: bytes, name: str, newest: int) -> dict[str, Any]:
    try:
        row = load_json(content)
    except ValueError as error:
        raise BundleBroken(f"{name} cannot be read: {type(error).__name__}") from error
    if not isinstance(row, dict):
        raise BundleBroken(f"{name} is not a JSON object")
    version = row.pop("schema_version", None)
    if not isinstance(version, int) or not 1 <= version <= newest:
        is_newer = isinstance(version, int) and version > newest
        raise (SchemaTooNew if is_newer else BundleBroken)(describe_schema(name, version, newest))
    return row


def _to_json(row: Mapping[str, object]) -> bytes:
    return json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n"


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
