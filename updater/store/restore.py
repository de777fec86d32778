"""Makes a state folder what a backup says, or its journal anew from its witness.

What is restored gets a journal with a new identity, so that no copy of the old one is taken for it. Minimal versions
and quarantine that the folder's witness knows are kept, even if the backup is older: a revision that was taken back
since the backup does not serve again.
"""

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from common.bundle import (
    POINTER_NAME,
    BundleBroken,
    Committed,
    bundle_folder,
    read_committed,
    render_pointer,
    restore_pointer,
)
from common.durable import read_bounded, sync_folder, sync_tree
from updater.core.record import ModelRecord, Stage
from updater.core.rules import ReleasePolicy
from updater.core.versions import choose_higher, parse_version
from updater.core.witness import ProtectedState, Witness
from updater.settings import JOURNAL_NAME
from updater.store import garbage
from updater.store.backup import MAX_MANIFEST_BYTES, BackupBroken, check_backup, check_kept
from updater.store.bundles import make_row
from updater.store.journal import Journal, read_records
from updater.store.state_folder import SOURCES
from updater.store.witness import WitnessBroken, read_witness, rollback_path, witness_path

REASON_OF_PAUSE = "the journal was made anew from its witness"


def restore(backup: Path, state: Path, policies: Mapping[str, ReleasePolicy] | None = None) -> tuple[ModelRecord, ...]:
    """Make a state folder what a backup says; returns the restored records. No process of the folder may run.

    Args:
        backup: its folder.
        state: the state folder.
        policies: of the models, by name, to compare minimal versions; default: names are SemVer.

    Raises:
        BackupBroken: the backup is damaged, or would serve what is in quarantine now; nothing was changed.
        JournalUnusable: its journal cannot be read; nothing was changed.
        OSError: a file cannot be read or written; the same may be tried again.
    """
    check_backup(backup)
    saved = {record.model: record for record in read_records(backup / JOURNAL_NAME)}
    records = _merge_protected(backup, saved, _read_protected(state), {} if policies is None else policies)
    content = _make_pointer(state, backup, saved, records)
    for folder in ("bundles", SOURCES):
        for source in sorted((backup / folder).glob("sha256-*")):
            _copy_whole(source, state / folder / source.name)
    _replace_journal(state, backup / JOURNAL_NAME, records)
    if content is not None:
        restore_pointer(state, content)
    return records


def restore_from_witness(state: Path) -> tuple[ModelRecord, ...]:
    """Make a new journal with what the witness has kept; updates are paused. No process of the folder may run.

    Raises:
        BackupBroken: there is no witness, or it is damaged.
        OSError: a file cannot be read or written.
    """
    kept = _read_protected(state)
    if kept is None:
        raise BackupBroken("there is no witness, or it is damaged: restore a backup instead")
    records = tuple(replace(_record_of(row), paused=True, pause_reason=REASON_OF_PAUSE) for row in kept.models)
    _replace_journal(state, None, records)
    return records


def _replace_journal(state: Path, copy: Path | None, records: Iterable[ModelRecord]) -> None:
    """Put a journal with a new identity in place; the old files are kept beside it with the ending `.replaced`.

    Wherever this is interrupted, a start finds the old journal, or one that does not belong to its witness or its
    rollback journal: it holds updates, and is never a first start.
    """
    path = state / JOURNAL_NAME
    fresh = state / f"restored-{JOURNAL_NAME}"
    for leftover in (fresh, rollback_path(fresh), witness_path(fresh)):
        leftover.unlink(missing_ok=True)
    if copy is not None:
        shutil.copyfile(copy, fresh)
        fresh.chmod(0o600)
    with contextlib.closing(Journal(fresh, is_restored=True)) as journal:
        for record in records:
            journal.write(record, ())
    rollback_path(fresh).unlink(missing_ok=True)
    for old in (path, rollback_path(path), witness_path(path)):
        if old.exists():
            shutil.copyfile(old, old.with_name(f"{old.name}.replaced"))
    fresh.replace(path)
    sync_folder(state)
    rollback_path(path).unlink(missing_ok=True)
    witness_path(fresh).replace(witness_path(path))
    sync_folder(state)


def _read_protected(state: Path) -> Witness | None:
    try:
        return read_witness(witness_path(state / JOURNAL_NAME))
    except WitnessBroken:
        return None


def _record_of(row: ProtectedState) -> ModelRecord:
    """A model of which nothing else is known."""
    return ModelRecord(row.model, min_version=row.min_version, quarantine=row.quarantine, replaced=row.replaced)


def _merge_protected(
    backup: Path, saved: Mapping[str, ModelRecord], kept: Witness | None, policies: Mapping[str, ReleasePolicy]
) -> tuple[ModelRecord, ...]:
    """The records of a backup with what the folder's witness knows, also of models that the backup does not know.

    Raises:
        BackupBroken: a model has nothing but what was taken back since the backup.
    """
    records = [
        _without_taken_back(_keep_protected(row, kept, policies.get(row.model, ReleasePolicy())), row, backup)
        for row in saved.values()
    ]
    return (*records, *(_record_of(row) for row in (kept.models if kept else ()) if row.model not in saved))


def _without_taken_back(record: ModelRecord, before: ModelRecord, backup: Path) -> ModelRecord:
    """The record without what was quarantined since the backup: with the revision before it, and without its update.

    What was in quarantine already is as it was: a person may have imported it nevertheless.
    """
    if record.update is not None and _is_taken_back(record.update.source_digest, record, before):
        record = replace(record, stage=Stage.IDLE, update=None)
    if record.previous is not None and _is_taken_back(record.previous.source_digest, record, before):
        record = replace(record, previous=None)
    bad, good = record.committed, record.previous
    if bad is None or not _is_taken_back(bad.source_digest, record, before):
        return record
    if good is None or not bundle_folder(backup, good.bundle_digest).is_dir():
        raise _no_good_revision(record.model, bad.revision)
    record = replace(record, stage=Stage.IDLE, update=None, committed=good, previous=None)
    record = replace(record, cpu_fallback=None, bridge=None, trouble=None)
    return replace(record, mix=None, mix_before=None, mix_mark=None, mix_distance=0.0, is_mix_changed=False)


def _is_taken_back(source_digest: str, record: ModelRecord, before: ModelRecord) -> bool:
    """Whether content is in quarantine, and was not when the backup was made."""
    return record.is_quarantined(source_digest) and not before.is_quarantined(source_digest)


def _no_good_revision(model: str, revision: str) -> BackupBroken:
    return BackupBroken(
        f"{model}: the backup would serve {revision}, which was taken back since, and has no revision before it; "
        "restore another backup, or make the journal anew with --from-witness"
    )


def _make_pointer(
    state: Path, backup: Path, saved: Mapping[str, ModelRecord], records: Iterable[ModelRecord]
) -> bytes | None:
    """The committed pointer to restore; None if the backup has none.

    Without what was taken back since. A model that the backup does not know keeps its row: its minimal version is kept
    too, so that the hub's release of that version would not be installed again.

    Raises:
        BackupBroken: it names what was taken back, and the journal no other revision.
    """
    if not (backup / POINTER_NAME).exists():
        return None
    content = read_bounded(backup / POINTER_NAME, MAX_MANIFEST_BYTES)
    try:
        rows = read_committed(backup)
    except BundleBroken:  # it is restored as it is, and a start says so
        return content
    own: dict[str, Committed] = {}
    with contextlib.suppress(BundleBroken, OSError):
        own = read_committed(state)
    changed = dict(rows)
    for record in records:
        model, before = record.model, saved.get(record.model)
        if before is None:
            if model in rows and record.is_quarantined(rows[model].source_digest):
                del changed[model]
            if model in own and not record.is_quarantined(own[model].source_digest):
                changed.setdefault(model, own[model])
        elif model in rows and _is_taken_back(rows[model].source_digest, record, before):
            changed[model] = _row_of(record, rows[model])
    return render_pointer(changed) if changed != rows else content


def _row_of(record: ModelRecord, bad: Committed) -> Committed:
    good = record.committed
    if good is None or good.source_digest == bad.source_digest:
        raise _no_good_revision(record.model, bad.revision)
    return make_row(record.model, good)


def _keep_protected(record: ModelRecord, kept: Witness | None, policy: ReleasePolicy) -> ModelRecord:
    """The record of a backup, with what the folder's witness knows beyond it.

    Of two minimal versions that cannot be compared, the folder's own stays: a backup is older, as a rule.
    """
    state = ProtectedState(record.model) if kept is None else kept.state_of(record.model)
    known = {row.source_digest for row in record.quarantine}
    quarantine = (*record.quarantine, *(row for row in state.quarantine if row.source_digest not in known))
    before = {row.source_digest for row in record.replaced}
    replaced = (*record.replaced, *(row for row in state.replaced if row.source_digest not in before))
    least = state.min_version or record.min_version
    if all(parse_version(version, policy) is not None for version in (state.min_version, record.min_version)):
        least = choose_higher(state.min_version, record.min_version, policy)
    again = {row.source_digest for row in state.quarantine}  # although a person had once let them be tried
    unquarantined = tuple(digest for digest in record.unquarantined if digest not in again)
    record = replace(record, min_version=least, quarantine=quarantine, replaced=replaced)
    return replace(record, unquarantined=unquarantined)


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder to its name by one rename, unless it is there and whole."""
    if _is_whole(target):
        return
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    staging = target.with_name(f".restoring-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging)
    sync_tree(staging)
    garbage.delete(target)
    staging.rename(target)
    sync_folder(target.parent)


def _is_whole(place: Path) -> bool:
    """Whether a bundle or a source is there, with the bytes that it was sealed with."""
    try:
        check_kept(place)
    except (BundleBroken, OSError):
        return False
    return True
