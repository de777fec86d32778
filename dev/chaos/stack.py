"""The whole stack for a step: supervisord with server, updater and watchdog on the scripted engine, and its callers.

The conversion alone is a stand-in. Everything else is what ships: run-stack, supervisor.conf with the updater's program
replaced, settings in a file, the hub a folder, the operator's and the control socket.
"""

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
import psutil

from common.bundle import Committed, read_committed
from common.paths import CONTROL_SOCKET, UPDATES_SOCKET, run_folder
from common.sealing import ConvertLimits
from dev.chaos import kit
from dev.chaos.updater import ARM_VARIABLE
from dev.harness import Answers, ControlClient, Load, eventually, question
from dev.harness.control import RECONNECT_OPTIONS
from dev.harness.process import ROOT
from dev.harness.revisions import MODEL, convert_scripted, publish_scripted, write_golden
from hotslot.control.v1 import control_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub

T = TypeVar("T")
FIRST = "v1.0.0"
WORD = "bird"  # bad revisions have no number for it; no golden item has it
LIMIT_SECONDS = 90.0
LOOK_SECONDS = 0.05
CALLERS, PACE_SECONDS = 4, 0.02
QUESTIONS = tuple(
    question(f"there are {number} cats", *([f"there is a {WORD}"] if number % 3 == 0 else ())) for number in range(24)
)


class ChaosStack:
    """Made, used in a `with`, closed: closing fails if it does not end with 0, or leaves a process.

    Args:
        folder: of the step; everything lies in it.
        state: hotslot's own folder, if it is to lie elsewhere.
        environment: variables for all its processes.
        sections: settings beside a step's defaults, by their table's name; "observe" and "model" stand for the model's.
    """

    def __init__(
        self,
        folder: Path,
        state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        sections: kit.Sections | None = None,
    ) -> None:
        self.folder, self.state = folder, state or folder / "state"
        self.hub, self.log_path = folder / "hub", folder / "stack.log"
        self.config, self.golden = folder / "hotslot.toml", folder / "golden"
        self.port = kit.free_port()
        self.address = f"127.0.0.1:{self.port}"
        for place in (self.state, folder / "bare", folder / "home", folder / "tmp"):
            place.mkdir(exist_ok=True)
        self.answers = Answers(folder / "bare")
        self._arm = folder / "arm"
        self._mark = uuid.uuid4().hex
        self._environment = kit.environment(self._mark, folder, {ARM_VARIABLE: str(self._arm), **(environment or {})})
        self._process: subprocess.Popen[bytes] | None = None
        write_golden(self.golden)
        kit.write_config(self.config, self.state, self.hub, self.golden, self.port, sections or {})
        kit.write_supervisor(folder / "supervisor.conf")

    # Its life.

    def start(self) -> Self:
        """Start it; the first revision comes in by the updater, as any other."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(ROOT / "deploy" / "run-stack"),
                    *("--config", str(self.config)),
                    *("--supervisor-config", str(self.folder / "supervisor.conf")),
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                process_group=0,
            )
        self.control = ControlClient(str(run_folder(self.state) / CONTROL_SOCKET), MODEL)
        self._updates = grpc.insecure_channel(
            f"unix:{run_folder(self.state) / UPDATES_SOCKET}", options=RECONNECT_OPTIONS
        )
        self.operator = UpdatesServiceStub(self._updates)
        return self

    def start_serving(self) -> Self:
        """Start it, and wait until the first revision is committed and nothing is under way."""
        self.publish(FIRST)
        self.start()
        self.wait_committed(FIRST)
        self.wait_rest()
        return self

    def end(self) -> int:
        """End it as a container's stop does; how it ended."""
        if self._process is None:
            raise RuntimeError("it was never started")
        self.control.close()
        self._updates.close()
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(LIMIT_SECONDS)

    def living(self) -> list[psutil.Process]:
        """All processes of this stack."""
        return list(kit.processes_of(self._mark))

    def destroy(self) -> None:
        """Leave nothing."""
        for process in self.living():
            process.kill()
        if self._process is not None:
            self._process.wait(10)

    def __enter__(self) -> Self:
        """Start, and wait until it serves; what fails on the way leaves nothing."""
        try:
            return self.start_serving()
        except BaseException as error:
            error.add_note(self.tail())
            self.destroy()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End whatever is left by force: who wants to see a good end calls `end`."""
        if error is not None:
            error.add_note(self.tail())
        self.destroy()

    def tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-6000:] if self.log_path.exists() else ""

    # What others do.

    def publish(self, revision: str, **script: Any) -> None:  # noqa: ANN401  of Script
        """Somebody publishes a revision; what it will answer is known from now on."""
        made = self.folder / "made"
        publish_scripted(self.hub, revision, made, **script)
        bundle = convert_scripted(made / f"made-{revision}", self.folder / "bare", revision, ConvertLimits())
        self.answers.add(bundle)
        self.answers.compute(QUESTIONS, [revision])

    def publish_bad(self, revision: str) -> None:
        """Somebody publishes a revision that no gate can find out: it has no number for one word of the callers'."""
        self.publish(revision, overflows_on=WORD)

    def load(self, clients: int = CALLERS, pace: float = PACE_SECONDS) -> Load:
        """Callers, without retries."""
        return Load(self, (FIRST,), clients, QUESTIONS, pace=pace)

    def arm(self, place: str) -> None:
        """The next life of the updater dies, or freezes, at a place; see `updater.loop`."""
        self._arm.write_text(place, encoding="utf-8")

    def pid(self, program: str) -> int:
        """Process id of "server", "updater", "watchdog" or "supervisord"; 0 if there is none."""
        for process in self.living():
            try:
                if kit.PROGRAMS[program] in " ".join(process.cmdline()):
                    return int(process.pid)
            except psutil.Error:
                continue
        return 0

    def strike(self, program: str, number: signal.Signals) -> int:
        """Signal one process; its id."""
        pid = self.wait(lambda: self.pid(program), f"there is a {program}")
        os.kill(pid, number)
        return pid

    def strike_all(self, number: signal.Signals) -> None:
        """Signal every process of the stack, as a machine that stands still does."""
        for process in self.living():
            process.send_signal(number)

    # What can be seen.

    def committed(self) -> Committed | None:
        """What a start would load."""
        return read_committed(self.state).get(MODEL)

    def seen(self) -> control_pb2.ModelState | None:
        """The model as the server tells it; None while there is no server."""
        try:
            return self.control.status()
        except grpc.RpcError:
            return None

    def serving(self) -> str:
        """Revision of the slot that answers, by the server's word; empty if none does."""
        state = self.seen()
        rows = [] if state is None else [slot for slot in state.slots if slot.load_id == state.active_load_id]
        return rows[0].revision if rows else ""

    def updates(self) -> pb.ModelUpdates:
        """Where updates stand, by the updater's word."""
        (model,) = self.operator.GetStatus(pb.GetStatusRequest(), timeout=LIMIT_SECONDS, wait_for_ready=True).models
        return model

    def outcome(self, revision: str, limit: float = LIMIT_SECONDS) -> str:
        """How the last update to a revision ended; empty if it has not."""
        request = pb.ListHistoryRequest(page_size=20)
        rows = self.operator.ListHistory(request, timeout=limit, wait_for_ready=True).updates
        row = next((row for row in rows if row.revision == revision), None)
        ended = row is not None and row.outcome != pb.UPDATE_OUTCOME_UNSPECIFIED
        return pb.UpdateOutcome.Name(row.outcome).removeprefix("UPDATE_OUTCOME_") if row is not None and ended else ""

    def is_on_trial(self) -> bool:
        """Whether a revision is on trial."""
        state = self.seen()
        return state is not None and state.HasField("trial")

    # What is waited for.

    def wait(self, ask: Callable[[], T | None], what: str, limit: float = LIMIT_SECONDS) -> T:
        """Wait until something is so; what cannot be asked now is asked again.

        Raises:
            AssertionError: it is not in time.
        """

        def asked() -> T | None:
            try:
                return ask()
            except (grpc.RpcError, psutil.Error, OSError):
                return None

        return cast("T", eventually(asked, limit, what, LOOK_SECONDS))  # None is waited away

    def wait_committed(self, revision: str, limit: float = LIMIT_SECONDS) -> None:
        """Wait until a revision is committed and answers."""

        def is_so() -> bool:
            row = self.committed()
            return row is not None and row.revision == revision and self.serving() == revision

        self.wait(is_so, f"{revision} is committed and serves", limit)

    def wait_stage(self, *stages: str, limit: float = LIMIT_SECONDS) -> None:
        """Wait for one of some stages, by their names."""
        numbers = {pb.UpdateStage.Value(f"UPDATE_STAGE_{stage}") for stage in stages}
        self.wait(lambda: self.updates().stage in numbers, f"stage {' or '.join(stages)}", limit)

    def wait_rest(self, limit: float = LIMIT_SECONDS) -> None:
        """Wait until nothing is under way, and only what serves is loaded."""
        self.wait_stage("IDLE", limit=limit)

        def is_alone() -> bool:
            state = self.control.status()
            return state.ready and not state.HasField("trial") and sum(bool(one.load_id) for one in state.slots) == 1

        self.wait(is_alone, "what serves is loaded alone", limit)
