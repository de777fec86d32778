"""The updater starts: a reload waits until its loops run; a loop that cannot be built keeps no other from running.

And it stops: after a reload in progress.
"""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client import CollectorRegistry

from common.logs import Logger
from common.settings import CONFIG_VARIABLE
from common.settings_change import ReloadPlan
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from tests.common.clock import KeptLog, SimClock
from tests.updater.edges.running import LIMIT_SECONDS, FakeLoops, Running
from updater.compose import UpdaterDependencies, build_model
from updater.core.record import ModelRecord
from updater.loop import GRACE_SECONDS
from updater.metrics import MetricsObserver
from updater.model_thread import BuiltLoop
from updater.models import UpdatedModels
from updater.store.database import JournalNotWritten
from updater.store.journal import Journal


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
    eventually(lambda: "loop_changed" in starting.log.events, what="the changed loop is built")
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
    monkeypatch.setattr("updater.model_thread.REBUILD_SECONDS", 0.02)
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
        self.models = UpdatedModels(
            cast("Logger", self.log),
            self.clock,
            MetricsObserver(self.registry),
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
    """It has been tried twice; the next attempt is made when a test wants it."""
    monkeypatch.setattr("updater.model_thread.REBUILD_SECONDS", 3600.0)
    made = ModelsWithoutLoop(monkeypatch)
    eventually(lambda: made.failures == 2.0, what="the thread has tried it")
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
    """The log has the traceback once, until another one follows."""
    without_loop.try_again()
    eventually(lambda: without_loop.failures == 3.0, what="it was tried again")
    assert without_loop.log.events == ["loop_crashed"]
    without_loop.error = ValueError("something else")
    without_loop.try_again()
    eventually(lambda: without_loop.failures == 4.0, what="it was tried again")
    assert [fields["exc_info"].args[0] for _, fields in without_loop.log.lines] == [
        "something that nobody foresaw",
        "something else",
    ]


def test_an_attempt_to_build_a_loop_that_hangs_ends_the_heartbeat(without_loop: ModelsWithoutLoop) -> None:
    """After a minute, as a step that hangs does; a pause between two attempts does not."""
    without_loop.clock.advance(GRACE_SECONDS + 1.0)
    assert without_loop.models.is_moving()

    without_loop.is_building.clear()
    without_loop.may_build.clear()
    without_loop.try_again()
    assert without_loop.is_building.wait(LIMIT_SECONDS)
    assert without_loop.models.is_moving()
    without_loop.clock.advance(GRACE_SECONDS + 1.0)
    assert not without_loop.models.is_moving()

    without_loop.error = None
    without_loop.may_build.set()
    eventually(lambda: without_loop.loops.began == ["shapes"], what="the loop runs")
    assert without_loop.models.is_moving()


def test_a_reload_repairs_a_loop_that_could_not_be_built_at_the_start(without_loop: ModelsWithoutLoop) -> None:
    """At once."""
    without_loop.error = None
    without_loop.try_again()
    eventually(lambda: without_loop.loops.began == ["shapes"], what="the loop runs")
    assert list(without_loop.models.handles) == ["shapes"]
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
