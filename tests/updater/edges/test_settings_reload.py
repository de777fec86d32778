"""The updater takes over its settings file while it runs: loops begin, end and change; others go on undisturbed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.logs import Logger
from common.settings import CONFIG_VARIABLE
from common.settings_change import ReloadPlan
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from tests.common.clock import KeptLog, SimClock
from tests.updater.core.world import NoObserver
from tests.updater.edges.running import LIMIT_SECONDS, FakeLoops, Running
from updater.compose import build_model
from updater.core.ports import JournalUnusable
from updater.metrics import LogObserver
from updater.model_thread import BuiltLoop, ModelThread
from updater.models import UpdatedModels


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


@dataclass
class OneThread:
    """The thread of one model, with loops that do nothing."""

    loops: FakeLoops = field(default_factory=FakeLoops)
    log: KeptLog = field(default_factory=KeptLog)
    nexts: list[BuiltLoop | None] = field(default_factory=list)
    unusable: list[JournalUnusable] = field(default_factory=list)

    def __post_init__(self) -> None:
        shared = (SimClock(), LogObserver(cast("Logger", self.log)), self.unusable.append)
        self.thread = ModelThread("shapes", self.loops.make("first"), self.nexts.append, *shared)
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
    models = UpdatedModels(cast("Logger", log), SimClock(), NoObserver(), lambda _error: None, lambda _name: None)
    settings = SimpleNamespace(models=[SimpleNamespace(name="shapes")], updater=SimpleNamespace(models={"shapes": 0}))
    dependencies: Any = SimpleNamespace(settings=settings, journal=SimpleNamespace(load=lambda _name: None))
    models.build(dependencies)
    models.start()
    eventually(lambda: loops.began == ["shapes"], what="the loop runs")
    loops.may_end.clear()
    models.apply(dependencies, ReloadPlan((), removed=("shapes",)), lambda: None)

    def end_removal() -> None:
        loops.may_end.set()
        eventually(lambda: not models.threads, what="the removed model's loop has ended")

    models.apply(dependencies, ReloadPlan((), added=("shapes",)), end_removal)
    eventually(lambda: log.events.count("loop_started") == 2, what="the new loop is built")
    eventually(lambda: len(loops.began) == 2, what="it runs")
    assert models.handle_of("shapes") is not None
    models.request_stop()
    for thread in models.threads:
        thread.join(LIMIT_SECONDS)
