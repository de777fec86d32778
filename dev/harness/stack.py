"""A stack: the real server in a state folder of its own, with scripted bundles, and clients of all its interfaces."""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from common.bundle import Bundle
from common.paths import CONTROL_SOCKET, run_folder
from dev.harness.answers import Answers, Question, question, scores_of
from dev.harness.control import CHANNEL_OPTIONS, ControlClient
from dev.harness.load import DEADLINE_SECONDS as LOAD_DEADLINE_SECONDS
from dev.harness.load import Load
from dev.harness.pointer import commit_bundle
from dev.harness.process import ServerProcess
from dev.harness.scripted_engine import ENGINES, make_scripted_bundle
from dev.harness.settings import Sections, format_sections, write_settings
from dev.harness.waiting import eventually
from hotslot.address.v1.address_pb2_grpc import AddressTaggingServiceStub
from hotslot.control.v1 import control_pb2
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1.entailment_pb2_grpc import EntailmentServiceStub
from hotslot.status.v1.status_pb2_grpc import StatusServiceStub

DEADLINE_SECONDS = 20.0
START_SECONDS = 90.0  # on a machine that other work has filled
ENTAILMENT = "hotslot.entailment.v1.EntailmentService"
ADDRESS = "hotslot.address.v1.AddressTaggingService"
STATUS = "hotslot.status.v1.StatusService"
OPEN_INFERENCE = "inference.GRPCInferenceService"
SERVER_DEFAULTS: Mapping[str, Any] = {"drain_delay_seconds": 0, "port": 0, "metrics_port": 0}
RUNNER_DEFAULTS: Mapping[str, Any] = {
    "extra_engines": ENGINES,
    "respawn_first_seconds": 0.1,
    "respawn_cap_seconds": 0.5,
}


class Stack:
    """One server. Made, `start`ed, `close`d; closing fails the test if a process is left.

    Args:
        folder: state folder; bundles and logs lie in it.
        server, runner: settings beside a test's defaults.
        committed: revision to be served from the start; None for a first install.
        models: names of the served models.
        script: fields of `Script` of the committed bundle.
        model: settings of every model beside its name.
        environment: variables of the server and its runners.
    """

    def __init__(
        self,
        folder: Path,
        server: Mapping[str, Any] | None = None,
        runner: Mapping[str, Any] | None = None,
        committed: str | None = "r1",
        models: tuple[str, ...] = ("shapes",),
        script: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.open_channel: Callable[[str], grpc.Channel] = _open_plain  # makes the clients' channel to an address
        self._environment = environment
        self.answers = Answers(folder)
        self._model = models[0]
        self._host = (server or {}).get("host", "127.0.0.1")
        self.config = folder / "hotslot.toml"
        sections = {"server": {**SERVER_DEFAULTS, **(server or {})}, "runner": {**RUNNER_DEFAULTS, **(runner or {})}}
        write_settings(self.config, {"state_dir": str(folder), "node": "test-node"}, models, sections, model)
        if committed is not None:
            bundle = self.bundle(committed, **(script or {}))
            for name in models:
                commit_bundle(folder, bundle, name)

    def bundle(self, revision: str, **script: Any) -> Bundle:  # noqa: ANN401  fields of Script
        """Make a sealed bundle of a revision."""
        made = make_scripted_bundle(self.folder, revision, **script)
        self.answers.add(made)
        return made

    def add_settings(self, sections: Sections) -> None:
        """Add tables to the settings file, before the start."""
        with self.config.open("a", encoding="utf-8") as file:
            file.write(format_sections(sections))

    def start(self, *, until_ready: bool = True) -> Self:
        """Start the server; wait until it listens, or until it serves. No process is left if that fails."""
        self.process = ServerProcess(self.folder, self.config, self._environment)
        try:
            self._connect()
            if until_ready:
                self.wait_ready()
        except BaseException:
            self.process.destroy()
            raise
        return self

    def _connect(self) -> None:
        """Wait until it listens, and make clients of all its interfaces."""
        started = self.process.wait_event("server_started", START_SECONDS)
        self.port, self.metrics_port = int(started["port"]), int(started["metrics_port"])
        self.health_port = int(started["health_port"])
        self.address = f"{self._host}:{self.port}"
        self.channel = self.open_channel(self.address)
        self.control = ControlClient(str(run_folder(self.folder) / CONTROL_SOCKET), self._model)
        self.entailment = EntailmentServiceStub(self.channel)
        self.tagging = AddressTaggingServiceStub(self.channel)
        self.health = HealthStub(self.channel)
        self.status = StatusServiceStub(self.channel)

    def close(self) -> None:
        """End it; fails if it does not end with 0 or leaves a process."""
        self.hang_up()
        try:
            if self.process.exit_code is None:
                self.process.send(signal.SIGTERM)
                assert self.process.wait_exit() == 0, self.process.tail()
            self.process.wait_gone()
        finally:
            self.process.destroy()

    def hang_up(self) -> None:
        """Close the connections of the test."""
        self.channel.close()
        self.control.close()

    def __enter__(self) -> Self:
        """Start, and wait until it serves."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after a failed test by force, so that the original failure is reported."""
        if error is None:
            self.close()
            return
        with contextlib.suppress(Exception):
            self.hang_up()
        self.process.destroy()

    # What a caller does.

    def predict(self, asked: Question, timeout: float = DEADLINE_SECONDS) -> pb.PredictResponse:
        """Send one request, without retries."""
        return self.entailment.Predict(asked.request(), timeout=timeout)

    def check(self, asked: Question, timeout: float = DEADLINE_SECONDS) -> str:
        """Send one request; the answer must match the reference of its revision. Returns the revision."""
        response = self.predict(asked, timeout)
        revision = response.served_by.revision
        assert scores_of(response) == self.answers.of(revision, asked), f"not the answer of {revision}"
        return revision

    def load(
        self,
        revisions: tuple[str, ...] = ("r1",),
        clients: int = 16,
        questions: tuple[Question, ...] = (),
        deadline: float = LOAD_DEADLINE_SECONDS,
    ) -> Load:
        """Callers without retries.

        Args:
            revisions: whose answers may come.
            clients: each with a connection of its own.
            questions: what they ask, in turn.
            deadline: of a call, seconds.
        """
        asked = questions or tuple(_default_questions())
        return Load(self.address, asked, self.answers.compute(asked, revisions), clients, deadline)

    def is_serving(self, name: str = "") -> bool:
        """Whether health reports SERVING for a name."""
        state = self.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_SECONDS).status
        return bool(state == health_pb2.HealthCheckResponse.SERVING)

    # What an operator does.

    def wait_ready(self) -> None:
        """Wait until the server reports SERVING, with a standby process if configured."""
        eventually(self.is_serving, START_SECONDS, what="the server is ready")

    def wait_calm(self) -> None:
        """Wait until it serves and the other slot has a standby process."""

        def is_calm() -> bool:
            states = sorted(slot.state for slot in self.control.status().slots)
            return states == ["LOADED", "READY"] and self.is_serving()

        eventually(is_calm, START_SECONDS, what="one slot answers, the other has a standby process")

    def calm(self, revision: str = "r1") -> None:
        """Bring a shared stack back: one revision answers, nothing is on trial, the other slot is free."""
        state = self.control.status()
        if state.trial.previous_load_id:
            self.control.activate(state.trial.previous_load_id)
        self._retire_other()
        if self.control.active().revision != revision:
            self.control.commit(self.control.trial(self.answers.digest_of(revision)))
            self._retire_other()
        self.wait_calm()

    def serve(self, revision: str, **script: Any) -> Bundle:  # noqa: ANN401  fields of Script
        """Commit another revision and wait until only it is loaded."""
        bundle = self.bundle(revision, **script)
        self._retire_other()
        self.control.commit(self.control.trial(bundle.bundle_digest))
        self._retire_other()
        self.wait_calm()
        return bundle

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process of this stack, never to others."""
        assert pid in self.process.living(), f"process {pid} does not belong to this stack"
        os.kill(pid, number)

    def active_pid(self) -> int:
        """Process id of the runner that answers."""
        return self.control.active().pid

    def _retire_other(self) -> None:
        other: control_pb2.SlotStatus = self.control.other()
        if other.load_id:
            self.control.retire(other.load_id)


def commit_on_disk(stack: Stack, bundle: Bundle, model: str = "shapes") -> None:
    """Move the committed pointer, as the updater does before CommitSlot."""
    commit_bundle(stack.folder, bundle, model)


def _open_plain(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)


def _default_questions() -> list[Question]:
    words = [f"statement {number}" for number in range(4)]
    return [question(*words[: 1 + number % 4]) for number in range(64)]
