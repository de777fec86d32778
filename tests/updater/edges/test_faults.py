"""Damaged journals, unauthorised users, bad and half-copied revisions: real processes, with callers and operators."""

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import grpc
import pytest

from common.paths import CONTROL_SOCKET, UPDATES_SOCKET, run_folder
from dev.harness.revisions import MODEL, model_folder
from dev.harness.scripted_engine import expected_scores
from hotslot.updates.v1 import updates_pb2 as pb
from tests.stack.refusal import refusal_of
from tests.updater.edges.conftest import MakeWorld
from tests.updater.edges.world import World
from updater.store.restore import restore_from_witness

pytestmark = [pytest.mark.timeout(180)]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _break_header(path: Path) -> None:
    path.write_bytes(b"no database" + path.read_bytes()[11:])


def _newer_schema(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")


@pytest.mark.fault("D6")
@pytest.mark.fault("H12")
@pytest.mark.parametrize("damage", [_empty, _break_header, _newer_schema])
def test_a_damaged_journal_stops_updates_but_not_serving(make_world: MakeWorld, damage: object) -> None:
    """The status says what to do, nothing is changed, and updates continue after a repair."""
    world = make_world()
    world.start()
    assert world.updater is not None
    world.updater.stop()
    journal = world.state / "journal.db"
    kept = journal.read_bytes()
    damage(journal)  # type: ignore[operator]  # one of the three above
    damaged = journal.read_bytes()
    world.start_updater()
    world.publish("v1.0.1")
    status = world.status()
    assert "journal" in status.advice
    with pytest.raises(grpc.RpcError) as caught:
        world.operator.CheckNow(pb.CheckNowRequest(), timeout=20)
    assert refusal_of(caught.value).brief[:2] == ("UNAVAILABLE", "JOURNAL_UNREADABLE")
    world.updater.wait_event("journal_unreadable")
    assert world.serving() == "v1.0.0"
    assert damaged == journal.read_bytes()
    world.updater.stop()

    journal.write_bytes(kept)
    world.restart_updater()
    world.wait_committed("v1.0.1")
    world.close()


@pytest.mark.fault("H12")
def test_a_journal_deleted_while_it_is_used_stops_updates_but_not_serving(make_world: MakeWorld) -> None:
    """It is noticed by itself, shown, and made anew from its witness without an outage."""
    world = make_world()
    world.start_with_short_window()
    world.start_updater()
    bad = world.publish_next(overflows_on="bird")
    world.status()
    world.wait(world.is_on_trial, "it is on trial")
    world.operator.Rollback(pb.RollbackRequest(), timeout=30)
    world.wait(lambda: world.status().stage == pb.UPDATE_STAGE_IDLE, "it is taken back")
    for name in ("journal.db", "journal.db-journal"):
        (world.state / name).unlink(missing_ok=True)
    world.wait(lambda: "was deleted while it was in use" in world.status().fault, "it is noticed")
    assert "state restore --from-witness" in world.status().advice
    assert world.serving() == "v1.0.0"
    assert world.updater is not None
    world.updater.stop()
    world.start_updater()
    world.wait(lambda: "journal.db is gone" in world.status().fault, "it is no first start")
    world.updater.stop()

    restore_from_witness(world.state)
    world.restart_updater()
    world.wait(lambda: not world.status().fault, "updates go on")
    world.wait(lambda: [row.revision for row in world.status().quarantine] == [bad], "nothing is forgotten")
    assert world.status().paused
    good = world.publish_next()
    world.operator.Resume(pb.ResumeRequest(), timeout=30)
    world.wait_committed(good)
    world.close()


@pytest.mark.fault("U4")
def test_another_user_cannot_reach_the_sockets(world: World) -> None:
    """Only the owner can enter the run folder."""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    world.start_updater()
    world.status()
    folder = run_folder(world.state)
    for parent in folder.parents:  # pytest's own folders are closed as well: open them, or this proves nothing
        if str(parent).startswith("/tmp/pytest-of-"):  # noqa: S108
            parent.chmod(parent.stat().st_mode | 0o055)
    become = "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    program = f"{become}; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for name in (UPDATES_SOCKET, CONTROL_SOCKET):
        path = str(folder / name)
        command = ["/usr/bin/env", "python3", "-c", program, path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert "PermissionError" in done.stderr
        assert (folder / name).stat().st_mode & 0o177 == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # even then the sockets themselves are their owner's
    for name in (UPDATES_SOCKET, CONTROL_SOCKET):
        command = ["/usr/bin/env", "python3", "-c", program, str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert "PermissionError" in done.stderr


@pytest.mark.fault("S6")
def test_a_revision_with_wrong_golden_answers_is_refused(make_world: MakeWorld) -> None:
    """It serves no request, the evidence has the numbers and items, and it is not tried again."""
    world = make_world(committed=None)
    write_expectations(world.golden, "good")
    world.start()
    world.publish("v1.0.0", salt="good")
    world.start_updater()
    world.wait_committed("v1.0.0")
    world.publish("v1.0.1", salt="wrong")
    seen = world.ask_until(lambda: world.is_quarantined("v1.0.1"), "it is refused")
    assert set(seen) == {"v1.0.0"}
    world.wait_rest()
    stub = world.operator
    latest = stub.ListHistory(pb.ListHistoryRequest(), timeout=20).updates[0]
    assert (latest.revision, latest.outcome) == ("v1.0.1", pb.UPDATE_OUTCOME_REFUSED)
    told = stub.GetUpdate(pb.GetUpdateRequest(update_id=latest.update_id), timeout=20)
    assert any(row.name == "accuracy" and not row.passed for row in told.measurements)
    assert told.differing
    assert "unquarantine" in told.advice
    # The same content under a higher version is in quarantine, too.
    world.publish("v1.0.2", salt="good")
    world.wait_committed("v1.0.2")
    world.close()


@pytest.mark.fault("S7")
def test_a_revision_that_fails_only_on_live_traffic_is_rolled_back(make_world: MakeWorld) -> None:
    """It is right on golden items and returns NaN to callers: the previous revision answers, and no call fails."""
    world = make_world(observe={"window_seconds": 60.0, "max_seconds": 90.0})
    world.start_with_short_window()
    world.publish("v1.0.1")
    world.start_updater()
    seen = world.ask_until(lambda: world.is_quarantined("v1.0.1"), "it is taken back", "a bird !nan@v1.0.1")
    assert set(seen) == {"v1.0.0"}
    world.wait_rest()
    world.close()


@pytest.mark.fault("S10")
def test_a_candidate_that_was_unloaded_is_not_activated(world: World) -> None:
    """Its slot was emptied between gate and activation: it is loaded and gated again."""
    updater = world.start_updater(crash_at="stop:ACTIVATING")
    revision = world.publish_next()
    world.wait(updater.is_frozen, "frozen before the swap")
    other = world.control.other()
    world.control.retire(other.load_id)
    updater.thaw()
    world.wait_committed(revision)
    assert world.serving() == revision


@pytest.mark.fault("R15")
def test_a_revision_is_installed_once_it_is_complete(world: World) -> None:
    """The manifest comes first, then incomplete weights: no update and no failure until it is complete."""
    world.start_updater()
    before, revision = world.serving(), world.next_revision()
    whole = model_folder(world.folder / "slow", revision)
    world.publish_to(world.folder / "elsewhere", whole, revision)
    source, target = world.folder / "elsewhere" / MODEL / revision, world.hub / MODEL / revision
    target.mkdir()
    world.status()  # waits until the updater answers
    for name in ("hotslot-manifest.json", "configuration.json", "config.json", "merges.txt", "vocab.json"):
        shutil.copy(source / name, target / name)
    world.operator.CheckNow(pb.CheckNowRequest(), timeout=30)
    assert "not complete" in world.status().advice
    weights = (source / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(weights[:1000])
    world.operator.CheckNow(pb.CheckNowRequest(), timeout=30)
    assert before == world.serving()
    with (target / "model.safetensors").open("ab") as file:
        file.write(weights[1000:])
    world.wait_committed(revision)


def write_expectations(folder: Path, salt: str) -> None:
    """A golden set that expects what a bundle of this salt answers."""
    lines = []
    for number in range(30):
        image = f"picture {number}".encode()
        (folder / f"{number}.png").write_bytes(image)
        scores = expected_scores(salt, image, "is it so")
        labels = {"yes": scores.yes, "no": scores.no, "maybe": scores.maybe}
        best = max(labels, key=lambda label: labels[label])
        row = {"item": f"i{number}", "image": f"{number}.png", "statements": ["is it so"], "expected": [best]}
        lines.append(json.dumps(row) + "\n")
    (folder / "golden.jsonl").write_text("".join(lines), encoding="utf-8")
