"""Backup, restore and verification of a state folder, and a journal made anew from its witness."""

import contextlib
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.bundle import Committed, Origin, bundle_folder, lock_pointer, read_committed, restore_pointer
from common.durable import LockTimeout
from dev.harness.pointer import commit_row
from dev.harness.scripted_engine import make_scripted_bundle
from tests.updater.edges.test_witness import BAD
from updater.core.record import Installed, ModelRecord
from updater.core.rules import ReleasePolicy
from updater.store.backup import BackupBroken, check_backup, restore, restore_from_witness, save, verify
from updater.store.database import JournalLost
from updater.store.journal import Journal
from updater.store.witness import read_witness, witness_path

WORSE = replace(BAD, source_digest="sha256:" + "c" * 64, revision="v1.2.0")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder in which v1.0.0 is committed."""
    state = tmp_path / "state"
    state.mkdir()
    bundle = make_scripted_bundle(state, "v1.0.0")
    installed = Installed("v1.0.0", bundle.source_digest, bundle.bundle_digest)
    with closing(Journal(state / "journal.db")) as journal:
        record = ModelRecord("shapes", committed=installed, min_version="v1.0.0", quarantine=(BAD,))
        journal.write(record, ())
    row = Committed("shapes", bundle.bundle_digest, bundle.source_digest, "v1.0.0", Origin.UPDATE)
    commit_row(state, row)
    return state


@pytest.fixture
def backup(state: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    target = tmp_path / "backup"
    with closing(Journal(state / "journal.db")) as journal:
        assert save(state, target, journal.copy_to) > 0
    return target


def load(state: Path) -> ModelRecord:
    """The record that the next start reads."""
    with closing(Journal(state / "journal.db")) as journal:
        record = journal.load("shapes")
    assert record is not None
    return record


def test_a_backup_moves_to_another_host(state: Path, backup: Path, tmp_path: Path) -> None:
    """Record, pointer and bundles are as they were; the journal is one of its own."""
    other = tmp_path / "other"
    other.mkdir()
    restore(backup, other)
    assert load(other) == load(state)
    assert read_committed(other) == read_committed(state)
    assert verify(other, other / "journal.db").problems == ()
    identities = {
        w.identity.journal_id for w in (read_witness(witness_path(p / "journal.db")) for p in (state, other)) if w
    }
    assert len(identities) == 2


def test_a_restore_waits_for_another_writer_of_the_pointer(
    state: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import at the same time is either replaced by the backup or comes after it; it is not overwritten unseen."""
    row = read_committed(state)["shapes"]
    monkeypatch.setattr("updater.store.backup.restore_pointer", partial(restore_pointer, wait_seconds=0.0))
    with lock_pointer(state), pytest.raises(LockTimeout):
        restore(backup, state)
    commit_row(state, replace(row, model="other"))
    restore(backup, state)
    assert read_committed(state) == {"shapes": row}


@pytest.mark.fault("H12")
def test_an_older_backup_does_not_forget(state: Path, backup: Path) -> None:
    """What the folder's witness knows stays: the minimal version and the quarantine."""
    with closing(Journal(state / "journal.db")) as journal:
        journal.write(replace(load_open(journal), min_version="v1.3.0", quarantine=(BAD, WORSE)), ())
    restore(backup, state)
    record = load(state)
    assert record.min_version == "v1.3.0"
    assert record.quarantine == (BAD, WORSE)
    assert (state / "journal.db.replaced").exists()


def load_open(journal: Journal) -> ModelRecord:
    """The record of an open journal."""
    record = journal.load("shapes")
    assert record is not None
    return record


@pytest.mark.fault("H12")
def test_a_lost_journal_is_made_anew_from_the_witness(state: Path) -> None:
    """Updates are paused until a person has looked; the pointer names what is committed."""
    (state / "journal.db").unlink()
    with pytest.raises(JournalLost):
        Journal(state / "journal.db")
    restore_from_witness(state)
    record = load(state)
    assert (record.min_version, record.quarantine) == ("v1.0.0", (BAD,))
    assert record.paused
    assert record.committed is None


def test_without_a_witness_only_a_backup_helps(state: Path) -> None:
    """Nothing is invented."""
    witness_path(state / "journal.db").write_bytes(b"torn")
    with pytest.raises(BackupBroken, match="restore a backup"):
        restore_from_witness(state)


@pytest.mark.parametrize("name", ["journal.db", "committed.json", "bundles"])
def test_a_damaged_backup_changes_nothing(state: Path, backup: Path, name: str) -> None:
    """Every file is compared before anything is replaced."""
    path = backup / name
    path = next(file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else path
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + b"!")
    before = (state / "journal.db").read_bytes()
    with pytest.raises(BackupBroken, match="differs"):
        restore(backup, state)
    assert (state / "journal.db").read_bytes() == before


def test_an_incomplete_backup_is_no_backup(backup: Path) -> None:
    """backup.json is written last."""
    (backup / "backup.json").unlink()
    with pytest.raises(BackupBroken, match="incomplete"):
        check_backup(backup)


def test_a_backup_is_not_mixed_with_another(state: Path, backup: Path) -> None:
    """Its folder must be empty."""
    with closing(Journal(state / "journal.db")) as journal, pytest.raises(BackupBroken, match="not empty"):
        save(state, backup, journal.copy_to)


@pytest.mark.parametrize("damage", ["byte", "missing"])
def test_a_restore_replaces_a_damaged_bundle(state: Path, backup: Path, damage: str) -> None:
    """What `verify` has named is whole afterwards; without the damage nothing would be copied."""
    folder = bundle_folder(state, read_committed(state)["shapes"].bundle_digest)
    file = next(path for path in sorted(folder.iterdir()) if path.name != "bundle.json")
    file.chmod(0o600)
    content = file.read_bytes()
    if damage == "byte":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        file.unlink()
    assert verify(state, state / "journal.db").problems

    restore(backup, state)

    assert verify(state, state / "journal.db").problems == ()


@pytest.mark.parametrize("damage", ["file", "missing", "pointer", "other"])
def test_verify_finds_what_a_start_would_miss(state: Path, damage: str) -> None:
    """Every byte of what the pointer and the journal name is read."""
    row = read_committed(state)["shapes"]
    folder = bundle_folder(state, row.bundle_digest)
    if damage == "file":
        file = next(path for path in sorted(folder.iterdir()) if path.name != "bundle.json")
        file.chmod(0o600)
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "missing":
        shutil.rmtree(folder)
    elif damage == "pointer":
        (state / "committed.json").write_bytes(b"")
    else:
        commit_row(state, replace(row, bundle_digest="sha256:" + "d" * 64, revision="v9"))
    found = verify(state, state / "journal.db")
    assert found.problems
    assert [record.model for record in found.models] == ["shapes"]


def test_verify_tells_a_damaged_journal(state: Path) -> None:
    """Without changing it."""
    content = (state / "journal.db").read_bytes()
    (state / "journal.db").write_bytes(content[: len(content) // 2])
    assert any(problem.startswith("journal: ") for problem in verify(state, state / "journal.db").problems)


@pytest.mark.fault("H12")
def test_versions_of_a_pattern_do_not_go_back(state: Path, backup: Path) -> None:
    """They are compared by the model's own pattern; without it, what the folder's witness knows stays."""
    with closing(Journal(state / "journal.db")) as journal:
        journal.write(replace(load_open(journal), min_version="release-10"), ())
    restore(backup, state)
    assert load(state).min_version == "release-10"

    newer = state.parent / "newer"
    with closing(Journal(state / "journal.db")) as journal:
        save(state, newer, journal.copy_to)
        journal.write(replace(load_open(journal), min_version="release-9"), ())
    restore(newer, state, {"shapes": ReleasePolicy(pattern=r"release-(\d+)")})
    assert load(state).min_version == "release-10"


@pytest.mark.parametrize("has_pointer", [True, False])
def test_an_interrupted_restore_is_repeated(
    state: Path, backup: Path, monkeypatch: pytest.MonkeyPatch, *, has_pointer: bool
) -> None:
    """Wherever it stops, the next start holds updates or finds the restored journal; it is never a first start."""
    if not has_pointer:  # that would prove that there was a journal
        (state / "committed.json").unlink()
    for number in range(1, 12):
        left = [number]
        with monkeypatch.context() as stopped, contextlib.suppress(KeyboardInterrupt):
            for name in ("replace", "unlink"):
                stopped.setattr(Path, name, stopping(getattr(Path, name), left))
            restore(backup, state)
        with contextlib.suppress(JournalLost):
            assert load(state).quarantine == (BAD,)
        restore(backup, state)
        assert load(state).quarantine == (BAD,)
        if not has_pointer:
            (state / "committed.json").unlink()
    assert left[0] > 0


def stopping(real: Callable[..., object], left: list[int]) -> Callable[..., object]:
    """The call, of which some happen; then the process is ended."""

    def call(path: Path, *arguments: object, **named: object) -> object:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(path, *arguments, **named)

    return call
