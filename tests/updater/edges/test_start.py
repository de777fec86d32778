"""The updater starts: a reload waits until the threads of the loops run; one that is not built keeps no other waiting.

And it stops: after a reload in progress.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client import CollectorRegistry

from common.logs import Logger
from common.paths import HEARTBEAT, run_folder
from common.settings import CONFIG_VARIABLE
from common.settings_change import ReloadPlan
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from tests.common.clock import KeptLog, SimClock
from tests.updater.edges.running import LIMIT_SECONDS, FakeLoops, Running
from updater.compose import UpdaterDependencies, build_model, read_boot_id
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord
from updater.loop import GRACE_SECONDS
from updater.metrics import BroadcastObserver, LogObserver, MetricsObserver
from updater.model_thread import BuiltLoop
from updater.models import UpdatedModels
from updater.store.database import JournalNotWritten
from updater.store.journal import Journal
from updater.supervise import RESTART_SECONDS, restart_pause


@pytest.fixture
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """An updater that a test starts."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "hotslot.toml"))
    one = Running(tmp_path)
    yield one
    one.stop()


class WatchedLock:
    """A lock that shows whether somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_waited_for = False

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for it; for ever by default."""
        if self._lock.acquire(blocking=False):
            return True
        self.is_waited_for = True
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Let another thread have it."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("is_built", [False, True])
def test_a_reload_waits_until_the_loops_have_started(
    starting: Running, monkeypatch: pytest.MonkeyPatch, *, is_built: bool
) -> None:
    """It comes before or after they are built: each model has one loop, with the new settings."""
    lock, build = WatchedLock(), UpdatedModels.build
    reloads: list[control_pb2.SettingsReload] = []
    reload = threading.Thread(target=lambda: reloads.append(starting.updater.reload()))

    def build_and_reload(models: UpdatedModels, dependencies: UpdaterDependencies) -> None:
        if is_built:
            build(models, dependencies)
        starting.write(shapes=10.0, more=60.0)
        reload.start()
        eventually(lambda: lock.is_waited_for or not reload.is_alive(), what="the reload waits")
        if not is_built:
            build(models, dependencies)

    monkeypatch.setattr(UpdatedModels, "build", build_and_reload)
    starting.write(shapes=60.0)
    starting.start(lambda updater: setattr(updater, "_reload_lock", lock))
    reload.join(LIMIT_SECONDS)
    assert [(one.applied, list(one.changed), list(one.added)) for one in reloads] == [(True, ["shapes"], ["more"])]
    eventually(lambda: all(list_health(starting).values()), what="the loops run")
    named = [one.name for one in threading.enumerate() if one.name.startswith("model-")]
    assert sorted(named) == ["model-more", "model-shapes"]


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_a_stop_waits_for_a_reload_in_progress(
    starting: Running, monkeypatch: pytest.MonkeyPatch, *, is_abandoned: bool
) -> None:
    """The loop that it starts is stopped too, and the journal is not closed before; nor if the wait was too long."""
    lock, may_build, apply, close = WatchedLock(), threading.Event(), UpdatedModels.apply, Journal.close
    done: list[str] = []

    def apply_later(*args: Any) -> None:  # noqa: ANN401  as apply
        done.append("building")
        assert may_build.wait(LIMIT_SECONDS)
        apply(*args)
        done.append("applied")

    def note_close(journal: Journal) -> None:
        done.append("closed")
        close(journal)

    if is_abandoned:
        monkeypatch.setattr("updater.daemon.STOP_SECONDS", 0.1)
    starting.write(shapes=60.0)
    starting.start(lambda updater: setattr(updater, "_reload_lock", lock))
    monkeypatch.setattr(UpdatedModels, "apply", apply_later)
    monkeypatch.setattr(Journal, "close", note_close)
    starting.write(shapes=60.0, more=60.0)
    reloading = threading.Thread(target=starting.updater.reload)
    reloading.start()
    eventually(lambda: done, what="the reload is in progress")
    starting.updater.request_stop()
    if is_abandoned:
        starting.thread.join(LIMIT_SECONDS)
    else:
        eventually(lambda: lock.is_waited_for or not starting.thread.is_alive(), what="the stop waits")
    may_build.set()
    reloading.join(LIMIT_SECONDS)
    starting.thread.join(LIMIT_SECONDS)
    assert not starting.thread.is_alive()
    assert done == (["building", "applied"] if is_abandoned else ["building", "applied", "closed"])
    eventually(lambda: not starting.threads(), what="the added loop has ended")
    assert starting.updater.reload().refusal.startswith("the updater stops")


def list_health(updater: Running) -> Mapping[str, bool]:
    """For each model whether its loop runs, as probes and metrics show it."""
    answer = HealthStub(updater.channel).List(health_pb2.HealthListRequest(), timeout=LIMIT_SECONDS)
    serving = health_pb2.HealthCheckResponse.SERVING
    return {name: one.status == serving for name, one in answer.statuses.items() if name}


@pytest.mark.fault("H15")
@pytest.mark.parametrize("error", [ValueError("something that nobody foresaw"), JournalNotWritten("the disk is full")])
def test_a_loop_that_cannot_be_built_at_the_start_keeps_no_other_from_running(
    starting: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Status, health and commands say so; it is built as soon as that is possible."""
    failing, build = {"shapes"}, build_model

    def build_or_fail(shared: Any, settings: Any, others: Any) -> Any:  # noqa: ANN401  as build_model
        if settings.name in failing:
            raise error
        return build(shared, settings, others)

    monkeypatch.setattr("updater.models.build_model", build_or_fail)
    monkeypatch.setattr("updater.supervise.RESTART_SECONDS", (0.02,))
    starting.write(shapes=60.0, more=60.0)
    starting.start()
    eventually(lambda: list_health(starting) == {"shapes": False, "more": True}, what="the other loop runs")
    eventually(lambda: starting.log.events.count("loop_crashed") > 2, what="it is tried again and again")
    failed = next(fields for event, fields in starting.log.lines if event == "loop_crashed")
    assert (failed["model"], failed["exc_info"]) == ("shapes", error)
    shapes = starting.status().models[0]
    assert (shapes.model, shapes.advice_code) == ("shapes", "FAULT")
    assert f"cannot be started ({type(error).__name__}" in shapes.fault
    with pytest.raises(grpc.RpcError, match="cannot be started"):
        starting.stub.Pause(pb.PauseRequest(model="shapes"), timeout=LIMIT_SECONDS)
    assert starting.stub.Pause(pb.PauseRequest(model="more"), timeout=LIMIT_SECONDS).state.paused

    failing.clear()
    eventually(lambda: all(list_health(starting).values()), what="its loop runs")
    assert starting.status().models[0].fault == ""
    assert starting.stub.Pause(pb.PauseRequest(model="shapes"), timeout=LIMIT_SECONDS).state.paused


@dataclass
class HangingBuild:
    """The builds of the loops of `shapes` hang until the test lets them go on."""

    is_hanging: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)
    polls: list[float] = field(default_factory=list)  # `poll_seconds` of each build that has ended

    def build(self, shared: Any, settings: Any, others: Any) -> Any:  # noqa: ANN401  as build_model
        """As build_model."""
        if settings.name == "shapes":
            self.is_hanging.set()
            assert self.may_go_on.wait(LIMIT_SECONDS)
            self.polls.append(shared.settings.updater.models["shapes"].poll_seconds)
        return build_model(shared, settings, others)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingBuild]:
    """It hangs from the start."""
    made = HangingBuild()
    monkeypatch.setattr("updater.models.build_model", made.build)
    monkeypatch.setattr("updater.model_thread.SLOW_SECONDS", 0.05)
    monkeypatch.setattr("updater.daemon.HEARTBEAT_SECONDS", 0.02)
    yield made
    made.may_go_on.set()


def test_a_build_that_hangs_at_the_start_keeps_no_other_loop_from_running(
    starting: Running, hanging: HangingBuild
) -> None:
    """The heartbeat goes on, so the watchdog ends no other model's update; status, health and commands say so."""
    starting.write(shapes=60.0, more=60.0)
    starting.start()
    eventually(lambda: list_health(starting) == {"shapes": False, "more": True}, what="the other loop runs")
    heartbeat = run_folder(starting.folder) / HEARTBEAT
    heartbeat.unlink(missing_ok=True)
    eventually(heartbeat.exists, what="the heartbeat goes on")
    shapes = starting.status().models[0]
    assert (shapes.model, shapes.advice_code) == ("shapes", "FAULT")
    assert re.search(r"has been starting for \d+ s", shapes.fault)
    with pytest.raises(grpc.RpcError, match="has been starting for"):
        starting.stub.Pause(pb.PauseRequest(model="shapes"), timeout=LIMIT_SECONDS)
    assert starting.stub.Pause(pb.PauseRequest(model="more"), timeout=LIMIT_SECONDS).state.paused

    hanging.may_go_on.set()
    eventually(lambda: all(list_health(starting).values()), what="its loop runs")
    assert starting.advice()["shapes"] not in {"FAULT", "STARTING"}
    assert starting.log.events.count("loop_started") == 2


def test_a_stop_waits_a_bounded_time_for_a_build_that_hangs(
    starting: Running, hanging: HangingBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop that is built after all never begins."""
    monkeypatch.setattr("updater.daemon.STOP_SECONDS", 0.1)
    starting.write(shapes=60.0)
    starting.start(waits=False)
    assert hanging.is_hanging.wait(LIMIT_SECONDS)
    starting.updater.request_stop()
    starting.thread.join(LIMIT_SECONDS)
    assert not starting.thread.is_alive()
    assert list(starting.threads()) == ["shapes"]
    hanging.may_go_on.set()
    eventually(lambda: not starting.threads(), what="the thread has ended")
    assert "loop_started" not in starting.log.events


def test_a_reload_during_a_build_that_hangs_is_taken_over_after_it(starting: Running, hanging: HangingBuild) -> None:
    """The reload is answered at once; the loop with the old settings never begins."""
    starting.write(shapes=60.0)
    starting.start(waits=False)
    assert hanging.is_hanging.wait(LIMIT_SECONDS)
    starting.write(shapes=10.0, more=60.0)
    found = starting.reload().reload
    assert (found.applied, list(found.changed), list(found.added)) == (True, ["shapes"], ["more"])
    eventually(lambda: list_health(starting) == {"shapes": False, "more": True}, what="the added loop runs")
    assert list(starting.threads()) == ["shapes", "more"]
    hanging.may_go_on.set()
    eventually(lambda: all(list_health(starting).values()), what="its loop runs")
    assert hanging.polls == [60.0, 10.0]
    assert starting.log.events.count("loop_started") == 1
    assert list(starting.threads()) == ["shapes", "more"]


def test_a_model_whose_build_hangs_can_be_removed_and_added_again(starting: Running, hanging: HangingBuild) -> None:
    """It keeps its one thread: after the hang the loop with the last settings begins, no other one."""
    starting.write(shapes=60.0, more=60.0)
    starting.start(waits=False)
    assert hanging.is_hanging.wait(LIMIT_SECONDS)
    starting.write(more=60.0)
    assert list(starting.reload().reload.removed) == ["shapes"]
    assert starting.names() == ["more"]
    starting.write(shapes=10.0, more=60.0)
    assert list(starting.reload().reload.added) == ["shapes"]
    hanging.may_go_on.set()
    eventually(lambda: all(list_health(starting).values()), what="its loop runs")
    assert hanging.polls == [60.0, 10.0]
    assert sorted(starting.threads()) == ["more", "shapes"]
    assert starting.log.events.count("loop_removed") == 0

    starting.write(more=60.0)
    assert list(starting.reload().reload.removed) == ["shapes"]
    eventually(lambda: list(starting.threads()) == ["more"], what="its thread has ended")


@pytest.mark.parametrize("is_first", [False, True])
def test_a_journal_that_cannot_be_trusted_when_one_loop_is_built_stops_all_updates(
    starting: Running, monkeypatch: pytest.MonkeyPatch, *, is_first: bool
) -> None:
    """As the status says of all models, at the start and after a reload."""
    is_broken = threading.Event()

    def build_or_fail(shared: Any, settings: Any, others: Any) -> Any:  # noqa: ANN401  as build_model
        if settings.name == "shapes" and is_broken.is_set():
            raise JournalUnusable("a record cannot be read")
        return build_model(shared, settings, others)

    monkeypatch.setattr("updater.models.build_model", build_or_fail)
    starting.write(shapes=60.0, more=60.0)
    if is_first:
        is_broken.set()
    starting.start(waits=not is_first)
    if not is_first:
        is_broken.set()
        starting.write(shapes=10.0, more=60.0)
        starting.reload()
    eventually(lambda: starting.advice() == {"shapes": "JOURNAL", "more": "JOURNAL"}, what="the status says so")
    eventually(lambda: not starting.threads(), what="the loops have ended")
    assert list_health(starting) == {"shapes": False, "more": False}
    starting.write(shapes=5.0)
    assert starting.reload().reload.refusal.startswith("updates do not run")


class ModelsWithoutLoop:
    """One model, whose loop cannot be built until it is repaired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loops, self.log, self.clock, self.registry = FakeLoops(), KeptLog(), SimClock(), CollectorRegistry()
        self.error: Exception | None = ValueError("something that nobody foresaw")  # None: it is repaired
        self.is_building, self.may_build = threading.Event(), threading.Event()
        self.may_build.set()
        self.record: ModelRecord | OSError = ModelRecord("shapes", min_version="1.2.3")
        monkeypatch.setattr(UpdatedModels, "_make", lambda _self, _dependencies, model: self._make(model.name))
        settings = SimpleNamespace(
            models=[SimpleNamespace(name="shapes")], updater=SimpleNamespace(models={"shapes": 0})
        )
        journal = SimpleNamespace(load=self._load)
        self.dependencies = cast("Any", SimpleNamespace(settings=settings, journal=journal))
        self.pauses: list[float] = []
        monkeypatch.setattr("updater.model_thread.restart_pause", self._note_pause)
        log = cast("Logger", self.log)
        self.models = UpdatedModels(
            log,
            self.clock,
            BroadcastObserver(LogObserver(log), MetricsObserver(self.registry)),
            lambda _error: None,
            lambda _name: None,
        )
        self.models.build(self.dependencies)
        self.models.start()

    def _make(self, name: str) -> BuiltLoop:
        self.is_building.set()
        assert self.may_build.wait(LIMIT_SECONDS)
        if self.error is not None:
            raise self.error
        return self.loops.make(name)

    def _note_pause(self, failures: int) -> float:
        """The thread waits for what the test does."""
        self.pauses.append(restart_pause(failures))
        return LIMIT_SECONDS

    @property
    def failures(self) -> float:
        """The metric of the failed attempts."""
        labels = {"model": "shapes", "error": "loop_crashed"}
        return self.registry.get_sample_value("hotslot_updater_errors_total", labels) or 0.0

    def try_again(self) -> None:
        """Try it at once, not in some seconds."""
        self.models.apply(self.dependencies, ReloadPlan((), changed=("shapes",)), lambda: None)

    def _load(self, _name: str) -> ModelRecord:
        if isinstance(self.record, OSError):
            raise self.record
        return self.record


@pytest.fixture
def without_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelsWithoutLoop]:
    """It has been tried once; the next attempt is made when a test wants it."""
    made = ModelsWithoutLoop(monkeypatch)
    eventually(lambda: made.failures == 1.0, what="the thread has tried it")
    yield made
    made.models.request_stop()
    for thread in made.models.threads:
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()


def test_the_bundles_of_a_model_without_a_loop_are_no_garbage(without_loop: ModelsWithoutLoop) -> None:
    """Its record is read from the journal; if it cannot be read, other models delete nothing."""
    models = without_loop.models
    assert models.records() == {"shapes": without_loop.record}
    without_loop.record = JournalNotWritten("the disk is full")
    with pytest.raises(OSError, match="the disk is full"):
        models.records()


def test_each_failed_attempt_to_build_a_loop_is_counted(without_loop: ModelsWithoutLoop) -> None:
    """The log has one line of it; after a reload the pauses begin again."""
    first = without_loop.error
    without_loop.error = ValueError("something else")
    without_loop.try_again()
    eventually(lambda: without_loop.failures == 2.0, what="it was tried again")
    assert without_loop.log.lines == [
        ("loop_crashed", {"model": "shapes", "failures": 1, "retry_in_seconds": LIMIT_SECONDS, "exc_info": error})
        for error in (first, without_loop.error)
    ]
    assert without_loop.pauses == [1.0, 1.0]


def test_a_loop_that_cannot_be_built_is_tried_again_with_growing_pauses(
    without_loop: ModelsWithoutLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a minute, as a loop that has failed: the log of a day has no line each five seconds."""

    def pause(failures: int) -> float:
        without_loop.pauses.append(restart_pause(failures))
        return 0.0 if failures < 7 else LIMIT_SECONDS

    monkeypatch.setattr("updater.model_thread.restart_pause", pause)
    without_loop.pauses.clear()
    without_loop.try_again()
    eventually(lambda: without_loop.failures == 8.0, what="it was tried seven times")
    assert without_loop.pauses == [*RESTART_SECONDS, 60.0, 60.0]


def test_an_attempt_to_build_a_loop_that_hangs_leaves_the_heartbeat(without_loop: ModelsWithoutLoop) -> None:
    """A restart would end the updates of the other models, and not help this one; its status says how long it hangs."""
    without_loop.is_building.clear()
    without_loop.may_build.clear()
    without_loop.try_again()
    assert without_loop.is_building.wait(LIMIT_SECONDS)
    without_loop.clock.advance(GRACE_SECONDS + 1.0)
    assert without_loop.models.is_moving()
    assert "has been starting for 61 s" in without_loop.models.fault_of("shapes")
    assert without_loop.models.running() == {"shapes": False}

    without_loop.error = None
    without_loop.may_build.set()
    eventually(lambda: without_loop.loops.began == ["shapes"], what="the loop runs")
    assert without_loop.models.is_moving()
    assert without_loop.models.fault_of("shapes") == ""


def test_a_loop_that_is_built_anew_takes_no_commands_and_has_no_step_that_hangs(
    without_loop: ModelsWithoutLoop,
) -> None:
    """What is known of the loop before it is of no use; the step of that one has ended."""
    without_loop.error = None
    without_loop.try_again()
    eventually(lambda: without_loop.models.running() == {"shapes": True}, what="the loop runs")
    before = without_loop.models.handle_of("shapes")
    without_loop.is_building.clear()
    without_loop.may_build.clear()
    without_loop.loops.is_moving = False
    without_loop.try_again()
    assert without_loop.models.handle_of("shapes") is None
    assert without_loop.is_building.wait(LIMIT_SECONDS)
    assert without_loop.models.is_moving()
    assert without_loop.models.running() == {"shapes": False}
    without_loop.try_again()
    without_loop.may_build.set()
    eventually(lambda: without_loop.models.handle_of("shapes"), what="the last loop is there")
    assert without_loop.models.handle_of("shapes") is not before
    assert not without_loop.models.is_moving()
    assert without_loop.loops.closed == ["shapes"] * 2  # the one before, and the one that was not needed any more


def test_a_reload_repairs_a_loop_that_could_not_be_built_at_the_start(without_loop: ModelsWithoutLoop) -> None:
    """At once."""
    without_loop.error = None
    without_loop.try_again()
    eventually(lambda: without_loop.loops.began == ["shapes"], what="the loop runs")
    assert without_loop.models.handle_of("shapes") is not None
    assert without_loop.models.running() == {"shapes": True}


def test_a_model_without_a_loop_can_be_removed(without_loop: ModelsWithoutLoop) -> None:
    """Its thread ends, also while the journal cannot be read; its bundles are no garbage after that either."""
    record, without_loop.record = without_loop.record, JournalNotWritten("the disk is full")
    without_loop.models.apply(without_loop.dependencies, ReloadPlan((), removed=("shapes",)), lambda: None)
    eventually(lambda: not without_loop.models.threads, what="the thread has ended")
    assert without_loop.models.running() == {}
    with pytest.raises(OSError, match="the disk is full"):
        without_loop.models.records()
    without_loop.record = record
    assert without_loop.models.records() == {"shapes": record}


def test_the_boot_id_of_a_machine_without_one_is_empty(tmp_path: Path) -> None:
    """Else it is the kernel's, without the end of the line."""
    file = tmp_path / "boot_id"
    assert read_boot_id(file) == ""
    file.write_text("00c8a5d1-9c5e\n", encoding="ascii")
    assert read_boot_id(file) == "00c8a5d1-9c5e"
