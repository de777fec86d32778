"""The updater takes over its settings file while it runs: loops begin, end and change; others go on undisturbed."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from common.address import unix_target
from common.clock import SystemClock
from common.logs import Logger
from common.paths import UPDATES_SOCKET, make_run_folder, run_folder
from common.settings import CONFIG_VARIABLE
from common.settings_change import ReloadPlan
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub
from tests.common.clock import KeptLog
from updater.compose import UpdaterDependencies, build_model
from updater.core.ports import JournalUnusable
from updater.daemon import Updater, read_settings
from updater.models import BuiltLoop, ModelThread, UpdatedModels

LIMIT_SECONDS = 10.0
TOP = 'state_dir = "{folder}"\n[updater]\nmetrics_port = -1\n'
MODEL = '[[models]]\nname = "{name}"\n[updater.models.{name}]\nhub_folder = "hub"\npoll_seconds = {seconds}\n'


@dataclass
class Running:
    """An updater that runs in a thread of this process."""

    folder: Path
    log: KeptLog = field(default_factory=KeptLog)

    def write(self, extra: str = "", **polls: float) -> None:
        """Write the settings: models with the times between their polls."""
        models = "".join(MODEL.format(name=name, seconds=seconds) for name, seconds in polls.items())
        (self.folder / "hotslot.toml").write_text(TOP.format(folder=self.folder) + extra + models, encoding="utf-8")

    def start(self, prepare: Callable[[Updater], None] = lambda _: None) -> None:
        """Start; wait until it answers operators."""
        make_run_folder(self.folder)
        self.updater = Updater(read_settings(), SystemClock(), cast("Logger", self.log))
        prepare(self.updater)
        self.thread = threading.Thread(target=self.updater.run, daemon=True)
        self.thread.start()
        self.channel = grpc.insecure_channel(unix_target(run_folder(self.folder) / UPDATES_SOCKET))
        grpc.channel_ready_future(self.channel).result(LIMIT_SECONDS)
        self.stub = UpdatesServiceStub(self.channel)
        eventually(self.threads, what="the loops run")

    def stop(self) -> None:
        """End it."""
        self.updater.request_stop()
        self.thread.join(LIMIT_SECONDS)
        self.channel.close()

    def reload(self) -> pb.ReloadSettingsResponse:
        """Take over the file."""
        return self.stub.ReloadSettings(pb.ReloadSettingsRequest(), timeout=LIMIT_SECONDS)

    def status(self) -> pb.GetStatusResponse:
        """The status of all models."""
        return self.stub.GetStatus(pb.GetStatusRequest(), timeout=LIMIT_SECONDS)

    def names(self) -> list[str]:
        """The models in the status."""
        return [model.model for model in self.status().models]

    def threads(self) -> dict[str, int]:
        """The threads of the loops, by model."""
        named = [one for one in threading.enumerate() if one.name.startswith("model-") and one.is_alive()]
        return {one.name.removeprefix("model-"): one.ident or 0 for one in named}


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """An updater of one model, whose hub is a folder that does not exist."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "hotslot.toml"))
    one = Running(tmp_path)
    one.write(shapes=60.0)
    one.start()
    yield one
    one.stop()


def test_loops_begin_change_and_end(running: Running) -> None:
    """The loop of a model that stays the same is not touched; a changed one continues from the journal."""
    before = running.threads()
    running.write(shapes=60.0, more=30.0)
    assert list(running.reload().reload.added) == ["more"]
    assert running.names() == ["shapes", "more"]
    assert eventually(lambda: running.threads().get("more"), what="the new loop runs")

    running.write(shapes=60.0, more=10.0)
    found = running.reload().reload
    assert [(one.key, one.before, one.after) for one in found.changes] == [
        ("updater.models.more.poll_seconds", "30.0", "10.0")
    ]
    eventually(lambda: "loop_changed" in running.log.events, what="the loop has the new settings")

    running.write(shapes=60.0)
    assert list(running.reload().reload.removed) == ["more"]
    eventually(lambda: running.threads() == before, what="the loop of the removed model has ended")
    assert running.names() == ["shapes"]


def test_a_file_that_needs_a_restart_changes_nothing(running: Running) -> None:
    """Nor one with mistakes; status and log say why."""
    running.write(
        'hub_connect_seconds = 5.0\nreserve_bytes = 1\nwebhooks = [{url = "https://example.com/x"}]\n', more=1.0
    )
    found = running.reload().reload
    assert (found.applied, found.refusal) == (False, "needs a restart: updater.webhooks")
    assert running.names() == ["shapes"]
    settings = running.status().settings
    assert settings.level == status_pb2.HEALTH_LEVEL_DEGRADED

    running.write("hub_connect_seconds = -1\n", shapes=60.0)
    assert "updater.hub_connect_seconds" in running.reload().reload.refusal
    running.write(shapes=60.0)
    assert running.reload().reload.applied
    assert running.log.events.count("settings_refused") == 2
    assert running.status().settings.level == status_pb2.HEALTH_LEVEL_OK


def test_a_loop_that_cannot_be_built_leaves_the_settings_in_use(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the status says is in use is in use: the whole file is refused, and no other loop is touched."""
    before, build = running.threads(), build_model

    def fail(shared: Any, settings: Any, others: Any) -> Any:  # noqa: ANN401  as build_model
        if settings.name == "broken":
            raise OSError("its state cannot be read")
        return build(shared, settings, others)

    monkeypatch.setattr("updater.models.build_model", fail)
    running.write(more=60.0, broken=60.0)
    found = running.reload().reload
    assert (found.applied, found.refusal) == (
        False,
        "the loop of an added model cannot be built: its state cannot be read",
    )
    assert running.names() == ["shapes"]
    assert running.threads() == before
    assert running.status().settings.level == status_pb2.HEALTH_LEVEL_DEGRADED

    monkeypatch.undo()
    monkeypatch.setenv(CONFIG_VARIABLE, str(running.folder / "hotslot.toml"))
    assert running.reload().reload.applied
    assert running.names() == ["more", "broken"]
    assert running.status().settings.level == status_pb2.HEALTH_LEVEL_OK


class WatchedLock:
    """A lock that shows whether somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_waited_for = False

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_waited_for = True
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("is_built", [False, True])
def test_a_reload_waits_until_the_loops_have_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_built: bool
) -> None:
    """It comes before or after they are built: each model has one loop, with the new settings."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "hotslot.toml"))
    running, lock, build = Running(tmp_path), WatchedLock(), UpdatedModels.build
    reloads: list[control_pb2.SettingsReload] = []
    reload = threading.Thread(target=lambda: reloads.append(running.updater.reload()))

    def build_and_reload(models: UpdatedModels, dependencies: UpdaterDependencies) -> None:
        if is_built:
            build(models, dependencies)
        running.write(shapes=10.0, more=60.0)
        reload.start()
        eventually(lambda: lock.is_waited_for or not reload.is_alive(), what="the reload waits")
        if not is_built:
            build(models, dependencies)

    monkeypatch.setattr(UpdatedModels, "build", build_and_reload)
    running.write(shapes=60.0)
    running.start(lambda updater: setattr(updater, "_reload_lock", lock))
    reload.join(LIMIT_SECONDS)
    assert [(one.applied, list(one.changed), list(one.added)) for one in reloads] == [(True, ["shapes"], ["more"])]
    eventually(lambda: "loop_changed" in running.log.events, what="the changed loop is built")
    named = [one.name for one in threading.enumerate() if one.name.startswith("model-")]
    assert sorted(named) == ["model-more", "model-shapes"]
    running.stop()


class FakeLoops:
    """Loops that run until they are stopped, and note their names when they begin."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.may_end = threading.Event()  # the step in progress is over
        self.may_end.set()

    def make(self, name: str) -> BuiltLoop:
        """A loop that does nothing."""
        stopping = threading.Event()

        def run() -> None:
            self.began.append(name)
            assert stopping.wait(LIMIT_SECONDS)
            assert self.may_end.wait(LIMIT_SECONDS)

        publisher = SimpleNamespace(snapshot=SimpleNamespace(record=None))
        loop = SimpleNamespace(publisher=publisher, is_moving=lambda: True)
        model: Any = SimpleNamespace(
            wake=threading.Event(), close=lambda: None, loop=loop, commands=None, progress=None
        )
        supervisor: Any = SimpleNamespace(run=run, is_running=True)
        return BuiltLoop(model, supervisor, stopping)


@dataclass
class OneThread:
    """The thread of one model, with loops that do nothing."""

    loops: FakeLoops = field(default_factory=FakeLoops)
    log: KeptLog = field(default_factory=KeptLog)
    nexts: list[BuiltLoop | None] = field(default_factory=list)
    unusable: list[JournalUnusable] = field(default_factory=list)

    def __post_init__(self) -> None:
        log = cast("Logger", self.log)
        self.thread = ModelThread("shapes", self.loops.make("first"), self.nexts.append, log, self.unusable.append)
        self.thread.thread.start()

    def stop(self) -> None:
        """End it."""
        self.thread.stop()
        self.join()

    def join(self) -> None:
        """Wait for its end."""
        self.thread.thread.join(LIMIT_SECONDS)
        assert not self.thread.thread.is_alive()


@pytest.fixture
def one() -> Iterator[OneThread]:
    """The thread of one model."""
    found = OneThread()
    yield found
    found.stop()


def test_a_change_that_comes_while_a_loop_is_built_is_not_lost(one: OneThread) -> None:
    """The loop of the last change runs."""

    def build_second() -> BuiltLoop:
        one.thread.change(lambda: one.loops.make("third"))
        return one.loops.make("second")

    one.thread.change(build_second)
    eventually(lambda: "third" in one.loops.began, what="the last loop runs")
    assert one.loops.began[0] == "first"


def test_a_stop_that_comes_while_a_loop_is_built_is_not_lost(one: OneThread) -> None:
    """The process ends in good order."""

    def build_second() -> BuiltLoop:
        one.thread.stop()
        return one.loops.make("second")

    one.thread.change(build_second)
    one.join()
    assert not one.thread.thread.is_alive()


def test_a_model_that_is_added_again_while_it_is_removed_keeps_its_thread(one: OneThread) -> None:
    """The reload was answered with "applied": its loop runs."""

    def remove() -> None:
        one.thread.change(lambda: one.loops.make("second"))

    one.thread.change(remove)
    eventually(lambda: "second" in one.loops.began, what="the loop of the model that was added again runs")
    assert None not in one.nexts


def test_a_loop_that_cannot_be_built_is_built_again(one: OneThread) -> None:
    """Whatever fails: the thread lives, the log says so, and the process still ends in good order."""

    def fail() -> BuiltLoop:
        raise ValueError("something that nobody foresaw")

    one.thread.change(fail)
    eventually(lambda: one.log.events == ["loop_crashed"], what="the log says so")
    assert one.thread.thread.is_alive()
    assert not one.thread.is_running


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_change_repairs_a_loop_that_cannot_be_built(one: OneThread, *, is_removed: bool) -> None:
    """What could not be built is not built again: the thread takes the last change, also one that removes the model."""

    def fail() -> BuiltLoop:
        raise ValueError("a device that does not exist")

    one.thread.change(fail)
    eventually(lambda: one.log.events == ["loop_crashed"], what="the log says so")
    one.thread.change(lambda: None if is_removed else one.loops.make("repaired"))
    eventually(lambda: one.nexts, what="the last change is done")
    assert one.log.events == ["loop_crashed"]
    if is_removed:
        one.join()
    else:
        eventually(lambda: "repaired" in one.loops.began, what="the repaired loop runs")
        assert one.thread.is_running


def test_a_journal_that_cannot_be_trusted_is_reported_when_a_loop_is_built(one: OneThread) -> None:
    """As when a loop runs: the updates stop, and it is not tried again."""

    def fail() -> BuiltLoop:
        raise JournalUnusable("the journal is not the one that was opened")

    one.thread.change(fail)
    eventually(lambda: one.unusable, what="the fault is reported")
    one.stop()
    assert (len(one.unusable), one.log.events) == (1, [])


def test_a_model_that_is_added_again_when_its_removal_ends_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread was alive before the reload was accepted, and has ended after it."""
    loops, log = FakeLoops(), KeptLog()
    monkeypatch.setattr(UpdatedModels, "_make", lambda _self, _dependencies, model: loops.make(model.name))
    models = UpdatedModels(cast("Logger", log), lambda _error: None, lambda _name: None)
    settings = SimpleNamespace(models=[SimpleNamespace(name="shapes")], updater=SimpleNamespace(models={"shapes": 0}))
    dependencies: Any = SimpleNamespace(settings=settings)
    models.build(dependencies)
    models.start()
    eventually(lambda: loops.began == ["shapes"], what="the loop runs")
    loops.may_end.clear()
    models.apply(dependencies, ReloadPlan((), removed=("shapes",)), lambda: None)

    def end_removal() -> None:
        loops.may_end.set()
        eventually(lambda: not models.threads, what="the removed model's loop has ended")

    models.apply(dependencies, ReloadPlan((), added=("shapes",)), end_removal)
    eventually(lambda: "loop_changed" in log.events, what="the new loop is built")
    eventually(lambda: len(loops.began) == 3, what="it runs; the one before, stopped, ended at once")
    assert list(models.handles) == ["shapes"]
    models.request_stop()
    for thread in models.threads:
        thread.join(LIMIT_SECONDS)
