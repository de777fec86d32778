"""A real updater and a real server on a hub over HTTP."""

import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cli.main import run
from common.paths import run_folder
from dev.harness.revisions import MODEL
from dev.harness.waiting import eventually
from hotslot.updates.v1 import updates_pb2 as pb
from tests.stack.refusal import refusal_of
from tests.updater.edges.world import World
from tests.updater.hub.conftest import WEIGHTS
from tests.updater.scripted_hub import Exchange, ScriptedHub, resets_after, stalls_after
from updater.store.journal import read_records

pytestmark = [pytest.mark.timeout(180)]
FOREVER = 10**6
COMMIT = "5e8c4ac9d1f20b7730c8a4b8d4a1c0ffee123456"
MIB = 1 << 20


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, ScriptedHub]]:
    """A server that serves v1.0.0, which came over HTTP."""
    folder = tmp_path_factory.mktemp("http")
    with ScriptedHub(folder / "hub" / MODEL) as server:
        world = World(folder, observe={"window_seconds": 1.0}, hub_url=server.url)
        try:
            world.start()
            yield world, server
            world.close()
        except BaseException:
            world.destroy()
            raise


@pytest.fixture
def world(parts: tuple[World, ScriptedHub]) -> Iterator[World]:
    """Its updater has ended; afterwards everything is as it must be."""
    world, server = parts
    world.calm()
    yield world
    server.faults.clear()
    assert world.updater is not None
    world.wait(lambda: world.status().stage in (1, 9), "the updater rests")
    world.wait_rest()
    world.operator.ResetBreaker(pb.ResetBreakerRequest(breaker="hub"), timeout=30)
    world.updater.stop()
    world.check_invariants()


@pytest.fixture
def server(parts: tuple[World, ScriptedHub]) -> ScriptedHub:
    """The hub."""
    return parts[1]


def transferred(world: World) -> tuple[int, int]:
    """Bytes that are here, and that will be."""
    status = world.status()
    return status.received_bytes, status.expected_bytes


@pytest.mark.fault("N14")
@pytest.mark.parametrize("place", ["VERIFYING", "GATING", "ACTIVATING", "OBSERVING", "COMMITTING"])
def test_a_staged_update_needs_no_hub(world: World, server: ScriptedHub, place: str) -> None:
    """After the download the update completes without the hub, and no call fails."""
    updater = world.start_updater(crash_at=f"stop:{place}")
    revision = world.publish_next()
    world.ask_until(updater.is_frozen, f"frozen at {place}")
    server.fails(resets_after(0), times=FOREVER)
    asked = len(server.of_kind("file"))
    updater.thaw()
    world.ask_until(lambda: _committed(world) == revision, "it is committed")
    assert revision == world.serving()
    assert asked == len(server.of_kind("file"))


def test_a_download_continues_after_the_updater_was_killed(world: World, server: ScriptedHub) -> None:
    """Kept bytes are hashed again and only the rest is downloaded; the status shows the progress."""
    server.fails(_after_the_look(stalls_after(3 * MIB), server), "file", name=WEIGHTS)
    updater = world.start_updater()
    revision = world.publish_next(weights_bytes=8 * MIB)
    world.wait(lambda: transferred(world)[0] > 2 * MIB, "some of it is here")
    received, expected = transferred(world)
    assert received < expected
    assert expected > 8 * MIB
    assert 0 < world.status().stage_fraction < 1
    updater.kill()
    assert updater.exit_code == -signal.SIGKILL
    server.asked.clear()
    world.restart_updater()
    world.wait_committed(revision)
    begins = [one.range_begin for one in server.of_kind("file") if one.query["FilePath"] == WEIGHTS]
    assert any(0 < begin <= 3 * MIB for begin in begins), begins
    assert 0 not in begins
    assert transferred(world) == (0, 0)


def _after_the_look(act: Callable[[Exchange], None], server: ScriptedHub) -> Callable[[Exchange], None]:
    """Let the question for the last byte pass: it is the transfer that is meant."""

    def choose(exchange: Exchange) -> None:
        if exchange.asked.range_begin:
            server.fails(choose, "file", name=WEIGHTS)
            exchange.answer()
        else:
            act(exchange)

    return choose


def test_a_check_reports_the_error_of_the_hub(world: World, server: ScriptedHub) -> None:
    """At once, without a URL."""
    world.start_updater()
    eventually(lambda: list(world.status().breakers), what="the updater has read its journal")
    server.fails(resets_after(0), times=FOREVER)
    with pytest.raises(grpc.RpcError) as caught:
        world.operator.CheckNow(pb.CheckNowRequest(), timeout=30)
    assert "closed the connection early" in str(caught.value.details())
    server.faults.clear()
    world.operator.ResetBreaker(pb.ResetBreakerRequest(breaker="hub"), timeout=30)
    told = world.operator.CheckNow(pb.CheckNowRequest(), timeout=30)
    assert told.message


@pytest.mark.fault("H2")
def test_operators_name_contents_by_prefixes(world: World, server: ScriptedHub) -> None:
    """Of source digests and of commit ids, in every command that takes one; a prefix of nothing is refused."""
    world.start_updater()
    world.wait(lambda: list(world.status().breakers), "the updater has read its journal")
    questions = (world.golden / "golden.jsonl").read_text(encoding="utf-8")
    (world.golden / "golden.jsonl").write_text("", encoding="utf-8")  # what is tested now waits for a person
    world.updates_hold()
    revision = world.next_revision()
    server.commits[revision] = COMMIT
    world.publish(revision)

    started = world.operator.Update(pb.UpdateRequest(revision=COMMIT[:6]), timeout=60).update
    world.wait_rest("HELD")
    digits = world.status().current.source_digest.removeprefix("sha256:")
    assert (started.revision, world.status().current.commit_id) == (revision, COMMIT)
    with pytest.raises(grpc.RpcError) as caught:
        world.operator.Approve(pb.ApproveRequest(source_digest="0" * 12), timeout=30)
    assert refusal_of(caught.value).reason == "NOT_HELD"
    world.operator.Approve(pb.ApproveRequest(source_digest=digits[:6]), timeout=30)
    (world.golden / "golden.jsonl").write_text(questions, encoding="utf-8")
    world.wait(lambda: world.serving() == revision, "it is on trial, or committed")

    with pytest.raises(grpc.RpcError) as caught:
        world.operator.Rollback(pb.RollbackRequest(revision="0" * 12), timeout=30)
    assert refusal_of(caught.value).reason == "OTHER_REVISION"
    world.operator.Rollback(pb.RollbackRequest(revision=COMMIT[:8]), timeout=30)
    world.wait(lambda: world.is_quarantined(revision), "it is taken back")
    world.wait_rest()
    with pytest.raises(grpc.RpcError) as caught:
        world.operator.Update(pb.UpdateRequest(revision=digits[:10]), timeout=60)
    assert refusal_of(caught.value).reason == "QUARANTINED"
    state = world.operator.Unquarantine(pb.UnquarantineRequest(source_digest=COMMIT[:7]), timeout=30).state
    assert list(state.quarantine) == []
    world.operator.Update(pb.UpdateRequest(revision=f"sha256:{digits[:8]}"), timeout=60)
    world.wait_committed(revision)
    world.operator.Resume(pb.ResumeRequest(), timeout=30)


def test_a_running_hotslot_is_backed_up(world: World, tmp_path: Path) -> None:
    """The updater copies its journal, also to another file system, and several times at once; the copy is restored."""
    world.start_updater()
    world.wait(lambda: list(world.status().breakers), "the updater has read its journal")
    memory = Path("/dev/shm")  # noqa: S108  a file system of its own, where there is one
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        backup, other = Path(name) / "backup", tmp_path / "other"
        assert hotslot("backup", str(backup), "--state-dir", str(world.state)) == 0
        assert (backup / "journal.db").stat().st_mode & 0o777 == 0o600
        assert hotslot("verify", "--state-dir", str(world.state)) == 0
        assert hotslot("restore", str(backup), "--state-dir", str(other)) == 0
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(world.operator.CopyJournal, pb.CopyJournalRequest(), timeout=30) for _ in range(4)]
        files = {call.result().file for call in calls}
    assert len(files) == 4
    for file in files:
        assert [record.model for record in read_records(run_folder(world.state) / file)] == [MODEL]
    (restored,) = read_records(other / "journal.db")
    assert restored.committed is not None
    assert restored.committed.revision == _committed(world)


def hotslot(*words: str) -> object:
    """Run `hotslot state …`; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        run(("state", *words))
    return ended.value.code or 0


def _committed(world: World) -> str:
    row = world.committed()
    return "" if row is None else row.revision
