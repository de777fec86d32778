"""The updater takes over its settings file while it runs: loops begin, end and change; others go on undisturbed."""

import threading
from collections.abc import Iterator
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
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub
from tests.common.clock import KeptLog
from updater.compose import build_model
from updater.daemon import Updater, read_settings
from updater.models import BuiltLoop, ModelThread

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

    def start(self) -> None:
        """Start; wait until it answers operators."""
        make_run_folder(self.folder)
        self.updater = Updater(read_settings(), SystemClock(), cast("Logger", self.log))
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


class FakeLoops:
    """Loops that run until they are stopped, and note their names when they begin."""

    def __init__(self) -> None:
        self.began: list[str] = []

    def make(self, name: str) -> BuiltLoop:
        """A loop that does nothing."""
        stopping = threading.Event()

        def run() -> None:
            self.began.append(name)
            assert stopping.wait(LIMIT_SECONDS)

        model: Any = SimpleNamespace(wake=threading.Event(), close=lambda: None)
        supervisor: Any = SimpleNamespace(run=run)
        return BuiltLoop(model, supervisor, stopping)


def test_a_change_that_comes_while_a_loop_is_built_is_not_lost() -> None:
    """The loop of the change before ends at once."""
    loops, log = FakeLoops(), cast("Logger", KeptLog())
    thread = ModelThread("shapes", loops.make("first"), lambda _built: None, log)

    def build_second() -> BuiltLoop:
        thread.change(lambda: loops.make("third"))
        return loops.make("second")

    thread.thread.start()
    thread.change(build_second)
    eventually(lambda: "third" in loops.began, what="the last loop runs")
    thread.stop()
    thread.thread.join(LIMIT_SECONDS)
    assert not thread.thread.is_alive()
    assert loops.began[0] == "first"


def test_a_stop_that_comes_while_a_loop_is_built_is_not_lost() -> None:
    """The process ends in good order."""
    loops, log = FakeLoops(), cast("Logger", KeptLog())
    thread = ModelThread("shapes", loops.make("first"), lambda _built: None, log)

    def build_second() -> BuiltLoop:
        thread.stop()
        return loops.make("second")

    thread.thread.start()
    thread.change(build_second)
    thread.thread.join(LIMIT_SECONDS)
    assert not thread.thread.is_alive()


def test_a_loop_that_cannot_be_built_is_built_again() -> None:
    """Whatever fails: the thread lives, the log says so, and the process still ends in good order."""
    loops, log = FakeLoops(), KeptLog()
    thread = ModelThread("shapes", loops.make("first"), lambda _built: None, cast("Logger", log))

    def fail() -> BuiltLoop:
        raise ValueError("something that nobody foresaw")

    thread.thread.start()
    thread.change(fail)
    eventually(lambda: log.events == ["loop_crashed"], what="the log says so")
    assert thread.thread.is_alive()
    thread.stop()
    thread.thread.join(LIMIT_SECONDS)
    assert not thread.thread.is_alive()
