"""The witness: a journal that is lost, older or another one is never taken for a first start."""

import errno
import os
import shutil
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.bundle import POINTER_NAME, Committed, Origin
from dev.harness.pointer import commit_row
from updater.core.record import ModelRecord, Quarantined
from updater.core.witness import ProtectedState
from updater.store import witness as witness_module
from updater.store.database import JournalLost, JournalNotWritten, JournalUnreadable
from updater.store.journal import Journal
from updater.store.witness import WitnessBroken, read_witness, rollback_path, witness_path

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BAD = Quarantined("sha256:" + "b" * 64, "v1.1.0", "NOT_FINITE", NOW)
RECORD = ModelRecord("shapes", min_version="v1.0.0")
LATER = replace(RECORD, min_version="v1.2.0", quarantine=(BAD,))
HOT = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with one record, closed; beside it an older copy of it."""
    path = tmp_path / "journal.db"
    with closing(Journal(path)) as journal:
        journal.write(RECORD, ())
    shutil.copy(path, tmp_path / "older.db")
    with closing(Journal(path)) as journal:
        journal.write(LATER, ())
    return path


def test_the_witness_has_what_must_not_be_forgotten(path: Path) -> None:
    """Minimal version and quarantine of each model, and nothing else of the record."""
    with closing(Journal(path)) as journal:
        journal.write(ModelRecord("other", paused=True), ())
    witness = read_witness(witness_path(path))
    assert witness is not None
    assert witness.models == (ProtectedState("shapes", "v1.2.0", (BAD,)),)
    assert witness.identity.protected_writes == 2


def test_the_witness_is_written_only_when_that_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other writes cost nothing more."""
    written: list[object] = []
    monkeypatch.setattr(witness_module, "write_witness", lambda *what: written.append(what))
    with closing(Journal(path)) as journal:
        for number in range(5):
            journal.write(replace(LATER, pause_reason=str(number)), ())
    assert written == []


@pytest.mark.fault("H12")
def test_a_deleted_journal_is_no_first_start(path: Path) -> None:
    """The sentence names both files and what to do."""
    path.unlink()
    with pytest.raises(JournalLost, match=r"journal\.db is gone") as caught:
        Journal(path)
    assert "journal.db-journal" in caught.value.advice
    assert not path.exists()


@pytest.mark.fault("H12")
def test_an_emptied_journal_is_damage(path: Path) -> None:
    """It is left as it is."""
    os.truncate(path, 0)
    with pytest.raises(JournalUnreadable, match="empty"):
        Journal(path)


@pytest.mark.fault("H12")
def test_an_older_journal_is_recognised(path: Path) -> None:
    """It has forgotten the quarantine."""
    shutil.copy(path.with_name("older.db"), path)
    with pytest.raises(JournalLost, match="older"):
        Journal(path)


@pytest.mark.fault("H12")
def test_a_journal_of_another_folder_is_recognised(path: Path, tmp_path: Path) -> None:
    """Even if it has more writes."""
    (tmp_path / "else").mkdir()
    other = tmp_path / "else" / "journal.db"
    with closing(Journal(other)) as journal:
        for number in range(9):
            journal.write(replace(RECORD, min_version=f"v2.{number}.0"), ())
    shutil.copy(other, path)
    with pytest.raises(JournalLost, match="another"):
        Journal(path)


@pytest.mark.fault("H12")
@pytest.mark.parametrize("replaces", [False, True])
def test_a_journal_that_loses_its_name_while_it_is_open_is_noticed(path: Path, *, replaces: bool) -> None:
    """By the check of the next look."""
    with closing(Journal(path)) as journal:
        journal.check()
        path.unlink()
        if replaces:
            shutil.copy(path.with_name("older.db"), path)
        with pytest.raises(JournalLost, match="replaced" if replaces else "deleted"):
            journal.check()


def interrupt_a_write(path: Path) -> tuple[bytes, bytes]:
    """Contents of the journal and its rollback journal, as a kill in the middle of a write leaves them."""
    with closing(Journal(path)) as journal:
        database = journal._database  # noqa: SLF001  to be ended in a transaction
        with suppress(InterruptedError), database.change() as connection:
            connection.execute("PRAGMA cache_spill=1")
            connection.execute("PRAGMA cache_size=1")
            for number in range(200):
                connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (f"m{number}", "x" * 4000))
            contents = path.read_bytes(), rollback_path(path).read_bytes()
            raise InterruptedError
    assert contents[1].startswith(HOT)
    return contents


@pytest.mark.fault("H14")
@pytest.mark.parametrize("older", ["older.db", "same.db"])
def test_a_hot_rollback_journal_beside_a_restored_journal_is_not_applied(path: Path, older: str) -> None:
    """SQLite would write pages of the lost file into the restored one; the sentence names the file to move away."""
    shutil.copy(path, path.with_name("same.db"))  # with the same protected state
    with closing(Journal(path)) as journal:
        journal.write(replace(LATER, paused=True), ())
        journal.write(LATER, ())
    _, rollback = interrupt_a_write(path)
    content = path.with_name(older).read_bytes()
    path.write_bytes(content)
    rollback_path(path).write_bytes(rollback)
    with pytest.raises(JournalLost, match=r"journal\.db-journal was left by another"):
        Journal(path)
    assert (path.read_bytes(), rollback_path(path).read_bytes()) == (content, rollback)

    rollback_path(path).unlink()  # as the sentence says
    if older == "same.db":
        with closing(Journal(path)) as journal:
            assert journal.load("shapes") == LATER


@pytest.mark.fault("K3")
def test_a_write_that_was_interrupted_is_rolled_back(path: Path) -> None:
    """Its rollback journal belongs to it, wherever the folder lies."""
    content, rollback = interrupt_a_write(path)
    path.write_bytes(content)
    rollback_path(path).write_bytes(rollback)
    with closing(Journal(path)) as journal:
        assert journal.load("shapes") == LATER
        assert journal.load("m7") is None


@pytest.mark.fault("H13")
@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1, "models": [{'])
def test_a_torn_pointer_without_a_journal_is_an_alarm(tmp_path: Path, content: bytes) -> None:
    """Something was committed, and nobody can say what."""
    (tmp_path / POINTER_NAME).write_bytes(content)
    with pytest.raises(JournalLost, match="cannot be read"):
        Journal(tmp_path / "journal.db")
    assert not (tmp_path / "journal.db").exists()


def test_a_pointer_that_an_updater_wrote_proves_that_there_was_a_journal(tmp_path: Path) -> None:
    """Also of a build that had no witness; a pointer that an import wrote comes before the first start."""
    digest = "sha256:" + "a" * 64
    commit_row(tmp_path, Committed("shapes", digest, digest, "v1.0.0", Origin.IMPORT))
    Journal(tmp_path / "journal.db").close()
    for name in ("journal.db", "journal.witness"):
        (tmp_path / name).unlink()
    commit_row(tmp_path, Committed("shapes", digest, digest, "v1.1.0", Origin.UPDATE))
    with pytest.raises(JournalLost, match=r"v1\.1\.0 was committed by it"):
        Journal(tmp_path / "journal.db")


def test_a_witness_that_misses_the_last_write_is_brought_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash between the two, or on a full disk; the write before is never missed."""
    reports: list[str] = []

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    newer = replace(LATER, min_version="v1.3.0")
    with closing(Journal(path, report=lambda name, _: reports.append(name))) as journal:
        with monkeypatch.context() as full:
            full.setattr(witness_module, "write_atomic", fail)
            journal.write(newer, ())
            with pytest.raises(JournalNotWritten, match="witness"):
                journal.write(replace(newer, min_version="v1.4.0"), ())
        assert journal.load("shapes") == newer
    assert reports == ["witness_not_written"]
    Journal(path).close()
    witness = read_witness(witness_path(path))
    assert witness is not None
    assert witness.state_of("shapes").min_version == "v1.3.0"


@pytest.mark.parametrize("damage", ["gone", "torn", "changed", "older"])
def test_a_witness_alone_is_written_anew(path: Path, damage: str) -> None:
    """The journal knows more; it is reported."""
    place, reports = witness_path(path), list[str]()
    good = place.read_bytes()
    if damage == "gone":
        place.unlink()
    elif damage == "torn":
        os.truncate(place, len(good) // 2)
    elif damage == "changed":
        place.write_bytes(good.replace(b"v1.2.0", b"v0.0.1"))
        with pytest.raises(WitnessBroken, match="checksum"):
            read_witness(place)
    else:
        with closing(Journal(path)) as journal:
            for number in range(3):
                journal.write(replace(LATER, min_version=f"v1.{number + 3}.0"), ())
        place.write_bytes(good)
    with closing(Journal(path, report=lambda name, _: reports.append(name))) as journal:
        record = journal.load("shapes")
    witness = read_witness(place)
    assert witness is not None
    assert record is not None
    assert witness.state_of("shapes").min_version == record.min_version
    assert reports == ["witness_renewed"]


def test_a_witness_that_disappears_while_the_journal_is_open_is_written_again(path: Path) -> None:
    """By the check of the next look."""
    with closing(Journal(path)) as journal:
        witness_path(path).unlink()
        journal.check()
        assert read_witness(witness_path(path)) is not None


def test_a_state_folder_may_be_moved(path: Path, tmp_path: Path) -> None:
    """A copy has other file numbers."""
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    with closing(Journal(tmp_path.parent / "moved" / path.name)) as journal:
        assert journal.load("shapes") == LATER
    shutil.rmtree(tmp_path.parent / "moved")


@pytest.mark.parametrize("code", [errno.ENFILE, errno.EMFILE, errno.EACCES, errno.ENOSPC])
def test_what_the_system_refuses_now_is_no_damage(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, no permission, a full disk: the same is tried again later."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as refused, suppress(JournalNotWritten):
        refused.setattr(os, "open", fail)
        Journal(path).close()
    with closing(Journal(path)) as journal:
        assert journal.load("shapes") == LATER
