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
from tests.updater.edges.test_witness import BAD, NOW
from updater.core.record import Installed, ModelRecord, Quarantined, Stage, Update, UpdateKind
from updater.core.rules import ReleasePolicy
from updater.store.backup import BackupBroken, check_backup, save, verify
from updater.store.database import JournalLost
from updater.store.journal import Journal
from updater.store.restore import restore, restore_from_witness
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
    monkeypatch.setattr("updater.store.restore.restore_pointer", partial(restore_pointer, wait_seconds=0.0))
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


def commit_second(state: Path) -> tuple[Installed, Installed]:
    """Commit v1.1.0 over v1.0.0; returns both."""
    old, bundle = load(state).committed, make_scripted_bundle(state, "v1.1.0")
    assert old is not None
    new = Installed("v1.1.0", bundle.source_digest, bundle.bundle_digest)
    with closing(Journal(state / "journal.db")) as journal:
        journal.write(replace(load_open(journal), committed=new, previous=old, min_version="v1.1.0"), ())
    commit_row(state, Committed("shapes", new.bundle_digest, new.source_digest, "v1.1.0", Origin.UPDATE))
    return old, new


def take_back(state: Path, bad: Installed, good: Installed) -> Quarantined:
    """Put a revision into quarantine, and commit the one before it; returns its row."""
    row = replace(BAD, source_digest=bad.source_digest, revision=bad.revision)
    with closing(Journal(state / "journal.db")) as journal:
        record = replace(load_open(journal), committed=good, previous=None, quarantine=(BAD, row))
        journal.write(record, ())
    commit_row(state, Committed("shapes", good.bundle_digest, good.source_digest, good.revision, Origin.UPDATE))
    return row


@pytest.mark.fault("H12")
def test_a_revision_that_was_taken_back_since_the_backup_does_not_serve_again(state: Path, tmp_path: Path) -> None:
    """Journal and pointer have the revision before it, although the backup names it as committed."""
    old, new = commit_second(state)
    with closing(Journal(state / "journal.db")) as journal:
        save(state, tmp_path / "monday", journal.copy_to)
    row = take_back(state, new, old)

    restore(tmp_path / "monday", state)

    record = load(state)
    assert (record.committed, record.previous, record.update) == (old, None, None)
    assert (record.min_version, record.quarantine) == ("v1.1.0", (BAD, row))
    assert read_committed(state)["shapes"].bundle_digest == old.bundle_digest
    assert verify(state, state / "journal.db").problems == ()


@pytest.mark.fault("H12")
def test_without_a_good_revision_nothing_is_restored(state: Path, backup: Path) -> None:
    """The backup knows but the one that was taken back."""
    old, new = commit_second(state)
    take_back(state, old, new)
    before = (state / "journal.db").read_bytes()

    with pytest.raises(BackupBroken, match=r"shapes: the backup would serve v1.0.0, which was taken back since"):
        restore(backup, state)

    assert (state / "journal.db").read_bytes() == before
    assert read_committed(state)["shapes"].bundle_digest == new.bundle_digest


@pytest.mark.fault("H12")
def test_an_update_that_failed_since_the_backup_is_not_continued(state: Path, tmp_path: Path) -> None:
    """It was on trial when the backup was made."""
    bad = Update("u1", UpdateKind.RELEASE, "v1.1.0", NOW, source_digest="sha256:" + "d" * 64)
    with closing(Journal(state / "journal.db")) as journal:
        journal.write(replace(load_open(journal), stage=Stage.OBSERVING, update=bad), ())
        save(state, tmp_path / "monday", journal.copy_to)
        row = replace(BAD, source_digest=bad.source_digest)
        journal.write(replace(load_open(journal), stage=Stage.IDLE, update=None, quarantine=(BAD, row)), ())

    restore(tmp_path / "monday", state)

    assert (load(state).stage, load(state).update) == (Stage.IDLE, None)


@pytest.mark.fault("H12")
def test_what_was_in_quarantine_when_the_backup_was_made_is_restored_as_it_was(state: Path, tmp_path: Path) -> None:
    """A person may have imported it nevertheless."""
    installed = load(state).committed
    assert installed is not None
    row = replace(BAD, source_digest=installed.source_digest)
    with closing(Journal(state / "journal.db")) as journal:
        journal.write(replace(load_open(journal), quarantine=(row,)), ())
        save(state, tmp_path / "monday", journal.copy_to)

    restore(tmp_path / "monday", state)

    assert load(state).committed == installed
    assert read_committed(state)["shapes"].bundle_digest == installed.bundle_digest


@pytest.mark.fault("H12")
@pytest.mark.parametrize("is_bad", [False, True])
def test_models_that_the_backup_does_not_know_stay(state: Path, backup: Path, *, is_bad: bool) -> None:
    """They were added after it: with their quarantine, and with what serves unless that is in it."""
    row = replace(read_committed(state)["shapes"], model="addresses")
    bad = replace(WORSE, source_digest=row.source_digest) if is_bad else WORSE
    with closing(Journal(state / "journal.db")) as journal:
        journal.write(ModelRecord("addresses", min_version="v2.0.0", quarantine=(bad,)), ())
    commit_row(state, row)

    restore(backup, state)

    with closing(Journal(state / "journal.db")) as journal:
        record = journal.load("addresses")
    assert record is not None
    assert (record.min_version, record.quarantine) == ("v2.0.0", (bad,))
    assert (read_committed(state).get("addresses") == row) is not is_bad


@pytest.mark.fault("H12")
def test_what_a_person_once_let_be_tried_and_failed_again_stays_in_quarantine(state: Path, tmp_path: Path) -> None:
    """The backup knows the permission, and not what came of it."""
    with closing(Journal(state / "journal.db")) as journal:
        allowed = replace(load_open(journal), quarantine=(BAD,), unquarantined=(WORSE.source_digest,))
        journal.write(allowed, ())
        save(state, tmp_path / "monday", journal.copy_to)
        journal.write(replace(allowed, quarantine=(BAD, WORSE), unquarantined=()), ())

    restore(tmp_path / "monday", state)

    assert load(state).is_quarantined(WORSE.source_digest)


def test_a_backup_goes_into_a_folder_that_is_a_link(state: Path, tmp_path: Path) -> None:
    """As to a disk that is mounted elsewhere."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with closing(Journal(state / "journal.db")) as journal:
        save(state, tmp_path / "link", journal.copy_to)
    check_backup(tmp_path / "disk")


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
