"""Backs up and verifies a state folder: what must not be lost, and what a start needs.

A backup is a folder: a whole copy of the journal, the committed pointer, the bundles and sources of the committed and
the previous revisions, and `backup.json` with the SHA-256 of every file.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.bundle import (
    POINTER_NAME,
    BundleBroken,
    bundle_folder,
    compute_source_digest,
    hash_file,
    read_bundle,
    read_committed,
)
from common.durable import read_bounded, read_within, sync_tree, write_atomic
from common.json_load import load_json
from common.schema import describe_schema
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord
from updater.settings import JOURNAL_NAME
from updater.store.journal import Journal, read_records
from updater.store.state_folder import SOURCES
from updater.store.witness import WitnessFile, rollback_path, witness_path

MANIFEST, BACKUP_SCHEMA = "backup.json", 1
MAX_MANIFEST_BYTES = 16 << 20


class BackupBroken(ValueError):
    """A backup or a state folder is damaged; the message says how."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of `verify`."""

    models: tuple[ModelRecord, ...]
    bundles: int
    size: int  # bytes of their files, and of the kept sources
    problems: tuple[str, ...]


def save(state: Path, target: Path, copy_journal: Callable[[Path], None]) -> int:
    """Write a backup into an empty or new folder; returns its bytes.

    Args:
        state: the state folder; its processes may run.
        target: of the backup.
        copy_journal: writes a whole copy of the journal to a path.

    Raises:
        BackupBroken: the target is not empty, or the state folder is damaged.
        OSError: a file cannot be read or written.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise BackupBroken(f"{target} is not empty")
    copy_journal(target / JOURNAL_NAME)
    records = read_records(target / JOURNAL_NAME)
    with contextlib.suppress(FileNotFoundError):  # any other failure to read it ends the backup
        write_atomic(target / POINTER_NAME, read_bounded(state / POINTER_NAME, MAX_MANIFEST_BYTES))
    for folder in sorted(_find_kept(target, state, records)):
        shutil.copytree(state / folder, target / folder)
    sync_tree(target)
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    rows = [
        {"name": str(path.relative_to(target)), "size": path.stat().st_size, "sha256": _hash(path)} for path in files
    ]
    row = {"schema_version": BACKUP_SCHEMA, "files": rows}
    write_atomic(target / MANIFEST, json.dumps(row, indent=1).encode() + b"\n", mode=0o600)
    return sum(path.stat().st_size for path in files)


def copy_journal(state: Path, target: Path) -> None:
    """Write a whole copy of the journal of a state folder whose updater does not run; nothing in the folder changes.

    Raises:
        BackupBroken: there is no journal, and none was lost.
        JournalUnusable: it was lost, or cannot be trusted.
        OSError: a file cannot be read or written.
    """
    check_state(state)
    path = state / JOURNAL_NAME
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for file in (path, rollback_path(path), witness_path(path)):
            if file.exists():
                shutil.copyfile(file, Path(scratch) / file.name)
        with contextlib.closing(Journal(Path(scratch) / JOURNAL_NAME)) as journal:
            journal.copy_to(target)


def is_before_first_update(state: Path) -> bool:
    """Whether a state folder names a bundle, but no updater has run on it yet, as that in an image."""
    path = state / JOURNAL_NAME
    return (state / POINTER_NAME).exists() and not any(map(os.path.lexists, (path, witness_path(path))))


def check_state(state: Path) -> None:
    """Check that a state folder has a journal; changes nothing.

    Raises:
        BackupBroken: there is none, and none was lost.
        JournalUnusable: it was lost.
    """
    if not state.is_dir():
        raise BackupBroken(f"there is no state folder {state}")
    path = state / JOURNAL_NAME
    WitnessFile(path, lambda _sentence: None)
    if not os.path.lexists(path):
        kind = "no updater has run on it yet" if (state / POINTER_NAME).exists() else "it is no state folder"
        raise BackupBroken(f"{state} has no {JOURNAL_NAME}: {kind}")


def check_backup(backup: Path) -> None:
    """Compare every file of a backup with `backup.json`.

    Raises:
        BackupBroken: a file is missing or differs, or it is no backup.
        OSError: a file cannot be read.
    """
    try:
        row = load_json(read_within(backup, MANIFEST, MAX_MANIFEST_BYTES), takes_halves=True)
        rows = {str(file["name"]): str(file["sha256"]) for file in row["files"]}
        version = row["schema_version"]
    except FileNotFoundError as error:
        raise BackupBroken(f"{backup} has no {MANIFEST}: it is no backup, or an incomplete one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BackupBroken(f"{MANIFEST} is damaged: {error}") from error
    if version != BACKUP_SCHEMA:
        raise BackupBroken(describe_schema(MANIFEST, version, BACKUP_SCHEMA))
    found = {str(path.relative_to(backup)): path for path in backup.rglob("*") if path.is_file()}
    found.pop(MANIFEST)
    if set(found) != set(rows):
        raise BackupBroken(f"the backup lacks or has more than listed: {min(set(found) ^ set(rows))}")
    changed = next((name for name, path in sorted(found.items()) if _hash(path) != rows[name]), "")
    if changed:
        raise BackupBroken(f"{changed} differs from {MANIFEST}")


def verify(folder: Path, journal: Path | None) -> Verified:
    """Check a state folder or a backup: journal, pointer, and every file of the bundles and sources that they name.

    Args:
        folder: the state folder, or the backup.
        journal: a whole copy of its journal; none before the first update.
    """
    problems: list[str] = []
    records: tuple[ModelRecord, ...] = ()
    try:
        records = () if journal is None else read_records(journal)
    except (JournalUnusable, OSError, sqlite3.Error) as error:
        problems.append(f"journal: {error}")
    bundles = size = 0
    with _noting(problems, "pointer"):
        rows = read_committed(folder)
        committed = {record.model: record.committed for record in records if record.committed is not None}
        for model, row in rows.items():
            known = committed.get(model)
            if known is not None and known.bundle_digest != row.bundle_digest:
                problems.append(f"pointer: {model} is {row.revision}, {known.revision} by the journal")
    for place in sorted(_find_kept(folder, folder, records, problems)):
        with _noting(problems, place):
            size += check_kept(folder / place)
            bundles += place.startswith("bundles")
    return Verified(records, bundles, size, tuple(problems))


def _find_kept(
    folder: Path, state: Path, records: Iterable[ModelRecord], problems: list[str] | None = None
) -> Iterator[str]:
    """Folders of the bundles and kept sources of the committed and the previous revisions, relative to the state."""
    rows = [row for record in records for row in (record.committed, record.previous) if row is not None]
    bundles, sources = {row.bundle_digest for row in rows}, {row.source_digest for row in rows}
    try:
        for committed in read_committed(folder).values():
            bundles.add(committed.bundle_digest)
            sources.add(committed.source_digest)
    except BundleBroken:
        pass  # `verify` reports it
    except OSError:
        if problems is None:
            raise
    for kind, digests in (("bundles", bundles), (SOURCES, sources)):
        for name in sorted(digest.replace(":", "-") for digest in digests):
            if (state / kind / name).is_dir():
                yield f"{kind}/{name}"
            elif kind == "bundles" and problems is not None:
                problems.append(f"bundles/{name} is missing")


def check_kept(place: Path) -> int:
    """Read every file of a bundle or a source and compare its hash; returns their bytes."""
    digest = place.name.replace("sha256-", "sha256:", 1)
    if place.parent.name == SOURCES:
        files = [hash_file(path) for path in sorted(place.iterdir())]
        if compute_source_digest(files) != digest:
            raise BundleBroken("its files do not have the digest of its name")
        return sum(file.size for file in files)
    bundle = read_bundle(bundle_folder(place.parent.parent, digest))
    changed = next((file.name for file in bundle.files if hash_file(place / file.name) != file), "")
    if changed or bundle.bundle_digest != digest:
        raise BundleBroken(f"{changed or 'its manifest'} is not what was sealed")
    return sum(file.size for file in bundle.files)


@contextlib.contextmanager
def _noting(problems: list[str], what: str) -> Iterator[None]:
    try:
        yield
    except (BundleBroken, OSError) as error:
        problems.append(f"{what}: {error}")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
