"""`hotslot state …`: a backup is made, read and restored; a running hotslot is not disturbed."""

from contextlib import closing
from pathlib import Path

import pytest

from common.durable import lock_instance
from common.paths import SERVER_LOCK, make_run_folder
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
    assert hotslot("state", "restore").code == 1
    assert state.exists()
