"""What every implementation of a port must do: the simulators of the core's tests and the real ones alike."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.engine_files import Task
from common.paths import run_folder
from dev.harness.hub import hub as serve_hub
from dev.harness.revisions import MODEL, publish_scripted, write_golden
from dev.harness.scripted_updater import digest_of_scripted
from dev.harness.simulated_server import SimServer
from dev.harness.stack import Stack
from tests.updater.scripted_hub import ScriptedHub
from tests.updater.simulators import Quality, SimGolden, SimHub, SimJournal, SimStore, bundle_of, content_of, source_of
from tests.updater.simulators import SimDisk as Disk
from updater.control.client import ControlClient
from updater.control.prober import Prober
from updater.core.effects import EffectFailure, FailureKind
from updater.core.ports import Control, EffectFailed, Golden, Hub, Journal, Store
from updater.core.record import Event, Installed, ModelRecord, Stage
from updater.golden_files import GoldenFiles
from updater.hub.client import HubHttpClient, HubHttpOptions
from updater.hub.folder import DirectoryHub
from updater.hub.modelscope import ModelScopeHub
from updater.store import journal as real_journal
from updater.store.bundles import BundleStore, StoreOptions
from updater.store.garbage import References
from updater.store.staging import StagingLimits

LIMIT = 60.0
ID = "20260102-030405-abcdef"


def failure(action: Callable[[], object]) -> EffectFailure:
    """How it failed; it must."""
    with pytest.raises(EffectFailed) as caught:
        action()
    return caught.value.failure


# Control.


@dataclass
class Server:
    """A server that serves one bundle, and two more that can be loaded."""

    control: Control
    golden: Golden
    good: str  # bundle digest
    broken: str  # does not load
    unreachable: Control


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real server."""
    made = Stack(tmp_path_factory.mktemp("ports"))
    made.bundle("r2")
    made.bundle("broken", fail_load="refused")
    with made:
        yield made


@pytest.fixture(params=["simulated", "real"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """One of each."""
    if request.param == "simulated":
        yield _simulated_server()
        return
    stack: Stack = request.getfixturevalue("stack")
    stack.calm()
    client = ControlClient(run_folder(stack.folder), MODEL, lambda: None)
    nobody = ControlClient(tmp_path, MODEL, lambda: None)
    write_golden(tmp_path / "golden")
    files = GoldenFiles(tmp_path / "golden", Task.VISUAL_ENTAILMENT)
    golden = Prober(files, client, Task.VISUAL_ENTAILMENT, SystemClock(), lambda: None)
    digest_of = stack.answers.digest_of
    yield Server(client, golden, digest_of("r2"), digest_of("broken"), nobody)
    client.close()
    nobody.close()
    stack.calm()


def _simulated_server() -> Server:
    def loads(digest: str) -> str:
        return "LOAD_FAILED" if content_of(digest) == "broken" else ""

    qualities = {name: Quality() for name in ("r1", "r2")}
    sim, dead = SimServer(lambda: bundle_of("r1"), loads), SimServer(lambda: "", loads)
    sim.start()
    dead.end(orderly=False)
    return Server(sim, SimGolden(sim, qualities), bundle_of("r2"), bundle_of("broken"), dead)


def load(server: Server, digest: str, generation: int = 0) -> str:
    """Load a bundle."""
    return server.control.load(digest, "", "test", generation, LIMIT)


def test_a_repeated_load_is_done_once(server: Server) -> None:
    """After a crash between the load and its record."""
    assert load(server, server.good) == load(server, server.good)


def test_a_bundle_that_does_not_load_is_permanent(server: Server) -> None:
    """The same load would fail again."""
    assert FailureKind.PERMANENT is failure(lambda: load(server, server.broken)).kind


def test_a_generation_conflict_is_transient(server: Server) -> None:
    """Commands compare and set the generation."""
    generation = server.control.state(LIMIT).generation
    failed = failure(lambda: load(server, server.good, generation + 7))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "GENERATION_CONFLICT")


def test_an_unreachable_server_is_transient(server: Server) -> None:
    """It may be restarting."""
    failed = failure(lambda: server.unreachable.state(2.0))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "SERVER_UNREACHABLE")


def test_a_load_that_is_gone_cannot_be_activated(server: Server) -> None:
    """The candidate was lost and must be loaded again."""
    failed = failure(lambda: server.control.activate("nobody", 60.0, "test", 0, LIMIT))
    assert (failed.kind, failed.reason) == (FailureKind.TRANSIENT, "LOAD_UNKNOWN")


def test_a_trial_is_started_extended_and_rolled_back(server: Server) -> None:
    """The previous slot stays loaded, and is activated again."""
    load_id = load(server, server.good)
    before = server.control.state(LIMIT)
    server.control.activate(load_id, 60.0, "test", before.generation, LIMIT)
    state = server.control.state(LIMIT)
    assert state.trial is not None
    assert (load_id, server.good) == (state.trial.load_id, state.trial.bundle_digest)
    assert before.active_load_id == state.trial.previous_load_id
    assert state.generation > before.generation
    server.control.activate(load_id, 600.0, "test", state.generation, LIMIT)
    again = server.control.state(LIMIT)
    assert again.trial is not None
    assert again.trial.lease_left_seconds > 100
    server.control.activate(before.active_load_id, 0.0, "test", again.generation, LIMIT)
    back = server.control.state(LIMIT)
    assert back.trial is None
    assert before.active_load_id == back.active_load_id
    assert back.last_trial is not None
    assert (server.good, "ROLLED_BACK") == (back.last_trial.bundle_digest, back.last_trial.outcome)


def test_a_commit_ends_a_trial_and_may_be_repeated(server: Server, request: pytest.FixtureRequest) -> None:
    """Then the previous slot can be retired."""
    before = server.control.state(LIMIT).active_load_id
    load_id = load(server, server.good)
    server.control.activate(load_id, 60.0, "test", 0, LIMIT)
    for _ in range(2):
        server.control.commit(load_id, "test", 0, LIMIT)
        state = server.control.state(LIMIT)
        assert state.trial is None
        assert load_id == state.active_load_id
    server.control.retire(before, "test", 0, LIMIT)
    assert before not in {slot.load_id for slot in server.control.state(LIMIT).slots}


def test_only_a_trial_is_committed(server: Server) -> None:
    """A loaded candidate is refused."""
    load_id = load(server, server.good)
    assert failure(lambda: server.control.commit(load_id, "test", 0, LIMIT)).reason == "NOT_ON_TRIAL"


def test_the_active_slot_is_not_retired(server: Server) -> None:
    """Nor the previous slot during a trial; an unknown load is no error."""
    active = server.control.state(LIMIT).active_load_id
    assert failure(lambda: server.control.retire(active, "test", 0, LIMIT)).reason == "SLOT_IN_USE"
    load_id = load(server, server.good)
    server.control.activate(load_id, 60.0, "test", 0, LIMIT)
    assert failure(lambda: server.control.retire(active, "test", 0, LIMIT)).reason == "SLOT_IN_USE"
    server.control.retire("nobody", "test", 0, LIMIT)


def test_the_gate_sends_every_question_to_both_slots(server: Server) -> None:
    """And measures the cost of both."""
    facts = server.golden.facts()
    load_id = load(server, server.good)
    active = server.control.state(LIMIT).active_load_id
    answers = server.golden.run(load_id, active, facts.digest, LIMIT)
    assert facts.questions == len(answers.questions)
    assert facts.digest == answers.golden_digest
    assert all(row.candidate.text and row.active is not None and row.active.text for row in answers.questions)
    assert (answers.device, answers.precision) == ("cpu", "float32")


def test_the_gate_without_an_active_slot_probes_only_the_candidate(server: Server) -> None:
    """At a first install, with built-in probes and no expectations."""
    answers = server.golden.run(load(server, server.good), "", "", LIMIT)
    assert answers.questions
    assert {(row.expected, row.active) for row in answers.questions} == {("", None)}


def test_an_emptied_slot_gives_no_verdict(server: Server) -> None:
    """The gate must run again."""
    digest = server.golden.facts().digest
    assert FailureKind.TRANSIENT is failure(lambda: server.golden.run("nobody", "", digest, LIMIT)).kind


def test_probes_are_counted(server: Server) -> None:
    """As many answers as probes."""
    active = server.control.state(LIMIT).active_load_id
    assert server.golden.probe(load(server, server.good), active, 5, LIMIT) == (5, 0, 0)


# Hub.


@pytest.fixture(params=["simulated", "folder", "http", "stand-in"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """A hub with v1 and v2, of which v2 is not whole."""
    if request.param == "simulated":
        yield SimHub({"v1": "one", "v2": "two"}, unready={"v2"})
        return
    for revision in ("v1", "v2"):
        publish_scripted(tmp_path / "hub", revision)
    with contextlib.ExitStack() as held:
        made: Hub = DirectoryHub(tmp_path / "hub", MODEL, SystemClock())
        if request.param == "http":
            made = asking(held.enter_context(ScriptedHub(tmp_path / "hub" / MODEL)).url)
        if request.param == "stand-in":
            made = asking(held.enter_context(serve_hub(tmp_path)).url)
            assert set(made.revisions(LIMIT)) == {"v1", "v2"}  # complete ones are listed, again and again
        (tmp_path / "hub" / MODEL / "v2" / "model.safetensors").unlink()
        yield made


def asking(url: str) -> ModelScopeHub:
    """The adapter that speaks ModelScope's protocol."""
    client = HubHttpClient(HubHttpOptions(url), SystemClock(), lambda: "", lambda _scheme, _host: "")
    return ModelScopeHub(client, f"acme/{MODEL}", SystemClock(), lambda _: False)


def test_a_hub_lists_its_revisions(hub: Hub) -> None:
    """Complete or not."""
    assert set(hub.revisions(LIMIT)) == {"v1", "v2"}


def test_a_release_has_a_stable_digest(hub: Hub) -> None:
    """The same at each call, and different for different content."""
    release = hub.release("v1", LIMIT)
    assert release.is_ready
    assert release.source_digest
    assert release == hub.release("v1", LIMIT)


def test_an_incomplete_release_says_what_is_missing(hub: Hub) -> None:
    """It is not ready: neither an update nor a failure."""
    release = hub.release("v2", LIMIT)
    assert (release.is_ready, bool(release.missing)) == (False, True)


def test_an_unknown_revision_has_its_own_reason(hub: Hub) -> None:
    """REVISION_UNKNOWN, which is permanent."""
    failed = failure(lambda: hub.release("v9", LIMIT))
    assert (failed.kind, failed.reason) == (FailureKind.PERMANENT, "REVISION_UNKNOWN")


def test_a_file_is_read_from_any_offset(hub: Hub) -> None:
    """So that a download can continue."""
    name = hub.release("v1", LIMIT).files[0].name
    whole = b"".join(hub.read("v1", name, 0, LIMIT))
    assert whole[2:] == b"".join(hub.read("v1", name, 2, LIMIT))


# Store.


@dataclass
class Disk2:
    """A store with a hub, and two bundles that could be committed."""

    store: Store
    hub: Hub
    one: Installed
    two: Installed


@pytest.fixture(params=["simulated", "real"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk2:
    """One of each."""
    if request.param == "simulated":
        installed = [Installed(name, source_of(name), bundle_of(name)) for name in ("v1", "v2")]
        sim = SimStore(Disk(sealed={row.bundle_digest for row in installed}), {"one": Quality()})
        return Disk2(sim, SimHub({"v1": "one"}), *installed)
    from dev.harness.scripted_engine import make_scripted_bundle  # noqa: PLC0415  used here alone

    state = tmp_path / "state"
    state.mkdir()
    bundles = [make_scripted_bundle(state, name) for name in ("v1", "v2")]
    installed = [Installed(row.revision, row.source_digest, row.bundle_digest) for row in bundles]
    publish_scripted(tmp_path / "hub", "v1")
    shared = StoreOptions(state, StagingLimits(reserve_bytes=0))
    store = BundleStore(shared, MODEL, SystemClock(), lambda: None, References, digest_of_scripted)
    return Disk2(store, DirectoryHub(tmp_path / "hub", MODEL, SystemClock()), *installed)


def test_the_pointer_returns_what_was_written(disk: Disk2) -> None:
    """None before the first write."""
    assert disk.store.pointer() is None
    for installed in (disk.one, disk.two, disk.two, None, None):
        disk.store.write_pointer(installed)
        assert installed == disk.store.pointer()


def test_staging_returns_the_listed_digest(disk: Disk2) -> None:
    """Also when it is repeated."""
    release = disk.hub.release("v1", LIMIT)
    for is_fresh in (False, False, True):
        staged = disk.store.stage(ID, release, disk.hub, 1 << 30, LIMIT, is_fresh=is_fresh)
        assert release.source_digest == staged
    disk.store.verify(disk.store.source_folder(ID, staged, is_kept=False), staged, "")


def test_keeping_a_source_is_idempotent(disk: Disk2) -> None:
    """It may be repeated after a crash."""
    release = disk.hub.release("v1", LIMIT)
    digest = disk.store.stage(ID, release, disk.hub, 1 << 30, LIMIT, is_fresh=False)
    for _ in range(2):
        disk.store.keep_source(ID, digest)
    assert disk.store.source_folder(ID, digest, is_kept=True)


def test_collection_keeps_what_is_referenced(disk: Disk2) -> None:
    """And deletes everything else if the cap is 0."""
    disk.store.collect(frozenset({disk.one.bundle_digest}), frozenset(), "", 0)
    assert {disk.one.bundle_digest} == disk.store.sealed()


def test_a_source_that_is_not_kept_has_no_predicted_bundle(disk: Disk2) -> None:
    """There is nothing to convert."""
    assert disk.store.converts_to(disk.two) == ""


# Journal.


@pytest.fixture(params=["simulated", "real"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    """One of each."""
    if request.param == "simulated":
        yield SimJournal(Disk())
        return
    opened = real_journal.Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


def test_a_journal_returns_the_last_record(journal: Journal) -> None:
    """None before the first write."""
    assert journal.load(MODEL) is None
    for stage in (Stage.STAGING, Stage.IDLE):
        record = ModelRecord(MODEL, stage, min_version="v1")
        journal.write(record, [Event(datetime.now(UTC), MODEL, stage, "event_happened", "")])
        assert record == journal.load(MODEL)
