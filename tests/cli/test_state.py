"""`hotslot state …`: a backup is made, read and restored; a running hotslot is not disturbed."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from common.bundle import Bundle, bundle_folder, hash_file, write_bundle
from common.durable import lock_instance
from common.paths import SERVER_LOCK, make_run_folder
from dev.harness.pointer import commit_bundle
from tests.cli.conftest import Hotslot
from updater.core.record import ModelRecord
from updater.store.journal import Journal


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with a journal."""
    folder = tmp_path / "state"
    folder.mkdir()
    with closing(Journal(folder / "journal.db")) as journal:
        journal.write(ModelRecord("shapes", min_version="v1.0.0"), ())
    return folder


def test_a_backup_is_made_read_and_restored(hotslot: Hotslot, state: Path) -> None:
    """By three commands."""
    assert hotslot("state", "backup", "copy").code == 0
    assert "minimal version v1.0.0" in hotslot("state", "verify", "copy").out
    (state / "journal.db").unlink()
    lost = hotslot("state", "verify")
    assert (lost.code, "journal.db is gone" in " ".join(lost.err.split())) == (1, True)
    assert hotslot("state", "restore", "copy").code == 0
    assert hotslot("state", "verify").code == 0


def test_a_lost_journal_continues_from_the_witness(hotslot: Hotslot, state: Path) -> None:
    """And says that updates are paused."""
    (state / "journal.db").unlink()
    done = hotslot("state", "restore", "--from-witness")
    assert done.code == 0
    assert "updates are paused" in done.out


def test_nothing_is_restored_under_a_running_server(hotslot: Hotslot, state: Path) -> None:
    """Its lock is held."""
    hotslot("state", "backup", "copy")
    with lock_instance(make_run_folder(state) / SERVER_LOCK):
        done = hotslot("state", "restore", "copy")
        assert hotslot("state", "restore", "--from-witness").code == 0  # without an outage
    assert done.code == 1
    assert "stop it first" in done.err


def test_a_restore_needs_a_source(hotslot: Hotslot, state: Path) -> None:
    """A backup or the witness."""
    assert hotslot("state", "restore").code == 2
    assert state.exists()


def raise_journal_schema(state: Path) -> None:
    """As a newer build's journal."""
    with closing(sqlite3.connect(state / "journal.db")) as journal, journal:
        journal.execute("PRAGMA user_version=99")


def raise_record_schema(state: Path) -> None:
    """As a newer build's record in a journal of the same form."""
    with closing(sqlite3.connect(state / "journal.db")) as journal, journal:
        journal.execute("UPDATE records SET row = json_set(row, '$.schema_version', 99)")


def raise_pointer_schema(state: Path) -> None:
    """As a newer build's committed pointer."""
    (state / "committed.json").write_text('{"schema_version": 99, "models": {}}\n')


@pytest.mark.fault("D6")
@pytest.mark.parametrize("change", [raise_journal_schema, raise_record_schema, raise_pointer_schema])
def test_a_downgrade_is_told(hotslot: Hotslot, state: Path, change: Callable[[Path], None]) -> None:
    """What a newer hotslot wrote is left as it is; the sentence says what to do."""
    change(state)
    before = {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()}
    done = hotslot("state", "verify")
    after = {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()}
    assert "start the newer hotslot again" in " ".join(f"{done.out} {done.err}".split())
    assert (done.code, after == before) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_root_restores_belongs_to_the_service(hotslot: Hotslot, state: Path, tmp_path: Path) -> None:
    """Else it could read neither journal nor bundles; what the service has made a link to stays root's."""
    service = 65534
    target = tmp_path / "of root"
    target.touch()
    for path in (state, *state.rglob("*")):
        os.chown(path, service, service)
    (state / "link").symlink_to(target)
    (state / "second name").hardlink_to(target)
    assert hotslot("state", "backup", "copy").code == 0
    assert hotslot("state", "restore", "copy").code == 0

    assert target.stat().st_uid == 0
    kept = {state / "link", state / "second name"}
    assert {path.lstat().st_uid for path in state.rglob("*") if path not in kept} == {service}


def list_tree(folder: Path) -> list[str]:
    """Every name in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


READERS = [
    ("state", "backup", "copy"),
    ("state", "verify"),
    ("state", "restore", "--from-witness"),
    ("bundle", "list"),
    ("bundle", "show", "abcd"),
    ("updates", "status"),
    ("updates", "history"),
    ("hub", "doctor", "a/b", "--hub", "hub"),
    ("console", "--port", "0"),
]


@pytest.mark.parametrize("words", READERS, ids=" ".join)
@pytest.mark.parametrize("named", ["typo", "file"])
def test_a_mistyped_state_folder_is_told_and_nothing_is_made(
    hotslot: Hotslot, tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    """Whatever the command reads there."""
    (tmp_path / "file").write_text("no folder")
    done = hotslot(*words, "--state-dir", named)
    assert named in done.err
    assert list_tree(tmp_path) == ["file"]
    assert done.code == 2 or (words[:2] == ("state", "restore") and done.code == 1)


@pytest.mark.parametrize("words", [("state", "backup", "copy"), ("state", "verify")], ids=" ".join)
def test_a_folder_without_a_journal_gets_none(hotslot: Hotslot, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Neither an empty one, nor one with the pointer of an import; the sentence says what is missing."""
    (tmp_path / "state").mkdir()
    empty = hotslot(*words)
    (tmp_path / "state" / "committed.json").write_text('{"schema_version": 1, "models": {}}\n')
    imported = hotslot(*words)
    assert "no journal.db: it is no state folder" in " ".join(empty.err.split())
    assert "no updater has run on it yet" in " ".join((imported.out + imported.err).split())
    assert (empty.code, imported.code) == (1, 1 if words[1] == "backup" else 0)
    assert list_tree(tmp_path) == ["state", "state/committed.json"]


def test_an_imported_bundle_is_verified_before_any_updater_has_run(hotslot: Hotslot, tmp_path: Path) -> None:
    """As that of a model in an image: its files are read, and a damaged one is told."""
    state, digest = tmp_path / "state", "sha256:" + "1" * 64
    weights = bundle_folder(state, digest) / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    plain = (digest, "sha256:" + "2" * 64, "v1.0.0", "ofa", "visual-entailment", "float32", "ofa-1")
    bundle = Bundle(*plain, (hash_file(weights),))
    write_bundle(weights.parent, bundle)
    commit_bundle(state, bundle, "shapes")
    good = hotslot("state", "verify")
    weights.write_bytes(b"damaged")
    damaged = hotslot("state", "verify")
    assert "1 bundles" in good.out
    assert (good.code, damaged.code) == (0, 1)


def test_reading_a_state_folder_changes_nothing(hotslot: Hotslot, state: Path) -> None:
    """No lock file, no witness: what an updater has not made is not made."""
    (state / "journal.witness").unlink()
    assert hotslot("state", "verify").code == 0
    assert hotslot("state", "backup", "copy").code == 0
    assert list_tree(state) == ["journal.db"]


def test_a_backup_is_no_part_of_what_it_saves(hotslot: Hotslot, state: Path) -> None:
    """It would be lost with the state folder."""
    done = hotslot("state", "backup", "state/copy")
    assert "inside the state folder" in " ".join(done.err.split())
    assert (done.code, (state / "copy").exists()) == (2, False)


def test_a_folder_that_is_no_backup_makes_no_state_folder(hotslot: Hotslot, tmp_path: Path) -> None:
    """It is refused before the state folder is made."""
    (tmp_path / "empty").mkdir()
    done = hotslot("state", "restore", "empty", "--state-dir", "fresh")
    assert "it is no backup" in " ".join(done.err.split())
    assert (done.code, list_tree(tmp_path)) == (1, ["empty"])


@pytest.mark.parametrize("name", ["journal.db", "journal.witness"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_in_the_journals_place_is_named(hotslot: Hotslot, state: Path, name: str, kind: str) -> None:
    """A pipe is not waited for, and not called empty."""
    place = state / name
    place.unlink()
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case _:
            place.symlink_to(name)
    done = hotslot("state", "verify")
    words = " ".join(done.err.split())
    assert name in words
    assert any(reason in words for reason in ("regular file", "is a folder", "link to itself"))
    assert done.code == 1
