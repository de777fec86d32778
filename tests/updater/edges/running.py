"""An updater that runs in a thread of this process; and loops that do nothing."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc

from common.address import unix_target
from common.clock import SystemClock
from common.logs import Logger
from common.paths import UPDATES_SOCKET, make_run_folder, run_folder
from dev.harness.waiting import eventually
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub
from tests.common.clock import KeptLog
from updater.daemon import Updater, read_settings
from updater.model_thread import BuiltLoop

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

    def start(self, prepare: Callable[[Updater], None] = lambda _: None, *, waits: bool = True) -> None:
        """Start; wait until it answers operators, and unless told not to, until each model has a loop or a fault."""
        make_run_folder(self.folder)
        self.updater = Updater(read_settings(), SystemClock(), cast("Logger", self.log))
        prepare(self.updater)
        self.thread = threading.Thread(target=self.updater.run, daemon=True)
        self.thread.start()
        self.channel = grpc.insecure_channel(unix_target(run_folder(self.folder) / UPDATES_SOCKET))
        grpc.channel_ready_future(self.channel).result(LIMIT_SECONDS)
        self.stub = UpdatesServiceStub(self.channel)
        if waits:
            eventually(self.threads, what="the threads run")
            eventually(lambda: "STARTING" not in self.advice().values(), what="the loops are built")

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

    def advice(self) -> dict[str, str]:
        """The code of the advice that the status has for each model."""
        return {model.model: model.advice_code for model in self.status().models}

    def threads(self) -> dict[str, int]:
        """The threads of the loops, by model."""
        named = [one for one in threading.enumerate() if one.name.startswith("model-") and one.is_alive()]
        return {one.name.removeprefix("model-"): one.ident or 0 for one in named}


class FakeLoops:
    """Loops that run until they are stopped, and note their names when they begin."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.closed: list[str] = []
        self.is_moving = True  # the step in progress is within its time limit
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
        loop = SimpleNamespace(publisher=publisher, is_moving=lambda: self.is_moving)
        model: Any = SimpleNamespace(
            wake=threading.Event(), close=lambda: self.closed.append(name), loop=loop, commands=None, progress=None
        )
        supervisor: Any = SimpleNamespace(run=run, is_running=True)
        return BuiltLoop(model, supervisor, stopping)
