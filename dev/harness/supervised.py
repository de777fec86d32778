"""The whole stack under supervisord, as in a container: server with runners, updater, watchdog."""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil

from common.sealing import ConvertLimits
from dev.harness.answers import Answers, question
from dev.harness.deployment import LIMIT_SECONDS, Deployment
from dev.harness.load import Load
from dev.harness.memory_group import MemoryGroup
from dev.harness.process import ROOT, free_port, processes_of, stack_environment
from dev.harness.revisions import MODEL, convert_scripted, publish_scripted, write_golden
from dev.harness.scripted_updater import ARM_VARIABLE
from dev.harness.settings import DEFAULTS, Sections, merged, write_settings

FIRST = "v1.0.0"
WORD = "bird"  # bad revisions have no number for it; no golden item has it
CALLERS, CALLER_PAUSE_SECONDS = 4, 0.02
QUESTIONS = tuple(
    question(f"there are {number} cats", *([f"there is a {WORD}"] if number % 3 == 0 else ())) for number in range(24)
)
SCRIPTED_UPDATER = "dev.harness.scripted_updater"
_UPDATER = "updater.daemon"
_PROGRAMS = {
    "server": ("-m inference.server.main",),
    "updater": (f"-m {SCRIPTED_UPDATER}", f"-m {_UPDATER}"),
    "watchdog": ("-m hotslot_watchdog --run-folder",),
    "supervisord": ("-m supervisor.supervisord",),
}


class SupervisedStack(Deployment):
    """The shipped start script on a settings file; ends every process that is left.

    Args:
        folder: everything lies in it.
        state: hotslot's state folder, if it is to lie elsewhere.
        environment: variables of all its processes.
        updater: module of the updater; the shipped one converts for real.
    """

    def __init__(
        self,
        folder: Path,
        state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        updater: str = _UPDATER,
    ) -> None:
        super().__init__(folder, state)
        self.log_path = folder / "stack.log"
        for place in (folder / "home", folder / "tmp"):
            place.mkdir(exist_ok=True)
        self._mark = uuid.uuid4().hex
        more = {
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOTSLOT_PYTHON": sys.executable,
            # Whatever writes where it should not writes here.
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            **(environment or {}),
        }
        self._environment = stack_environment(self._mark, more)
        self.group: MemoryGroup | None = None  # in which all its processes run
        self.prefix: tuple[str, ...] = ()  # a command that starts it
        self.output: int | None = None  # descriptor that its output goes to; the log by default
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor = folder / "supervisor.conf"
        write_supervisor(self._supervisor, updater)

    def start(self) -> Self:
        """Start it."""
        command = [
            *self.prefix,
            str(ROOT / "deploy" / "run-stack"),
            *("--config", str(self.config)),
            *("--supervisor-config", str(self._supervisor)),
        ]
        if self.group is not None:
            command = self.group.wrap(command)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log if self.output is None else self.output,
                stderr=log,
                cwd=ROOT,
                process_group=0,
            )
        return self

    def end(self) -> int:
        """Stop it as a container runtime does; returns its exit code."""
        if self._process is None:
            raise RuntimeError("it was never started")
        self.disconnect()
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(LIMIT_SECONDS)

    def living(self) -> list[psutil.Process]:
        """All processes of this stack."""
        return list(processes_of(self._mark))

    def destroy(self) -> None:
        """Kill every process that is left."""
        for process in self.living():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(10)

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End whatever is left by force; `end` first shows whether it ends in good order."""
        if error is not None:
            error.add_note(self.logs())
        self.destroy()

    def logs(self) -> str:
        """The end of its log, without the lines of calls, which are most of it."""
        if not self.log_path.exists():
            return ""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if '"call_ended"' not in line)[-12000:]

    def pid(self, program: str) -> int:
        """Process id of "server", "updater", "watchdog" or "supervisord"; 0 if there is none."""
        for process in self.living():
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if any(part in command for part in _PROGRAMS[program]):
                return int(process.pid)
        return 0

    def send_signal(self, program: str, number: signal.Signals) -> int:
        """Send a signal to one program; returns its process id."""
        pid = self.wait(lambda: self.pid(program), f"there is a {program}")
        os.kill(pid, number)
        return pid

    def send_signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the stack, as a suspended machine does."""
        for process in self.living():
            process.send_signal(number)


class ScriptedStack(SupervisedStack):
    """A supervised stack on the scripted engine; only the conversion is a stub.

    Args:
        folder: everything lies in it.
        state: hotslot's state folder, if it is to lie elsewhere.
        environment: variables of all its processes.
        sections: settings beside the defaults; see `dev.harness.settings.merged`.
        script: fields of `Script` of every revision.
    """

    def __init__(
        self,
        folder: Path,
        state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        sections: Sections | None = None,
        script: Mapping[str, Any] | None = None,
    ) -> None:
        self._arm = folder / "arm"
        self._script = dict(script or {})
        super().__init__(folder, state, {ARM_VARIABLE: str(self._arm), **(environment or {})}, SCRIPTED_UPDATER)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        (folder / "bare").mkdir(exist_ok=True)
        self.answers = Answers(folder / "bare")
        write_golden(self.golden)
        given = merged(sections or {})
        is_http = "hub_model" in given.get(f"updater.models.{MODEL}", {})
        hub = {} if is_http else {"hub_folder": str(self.hub)}
        places: Sections = {"model": {"golden": str(self.golden), **hub}, "server": {"port": self.port}}
        tables = merged(DEFAULTS, places, given)
        write_settings(self.config, {"state_dir": str(self.state), "node": "chaos"}, (MODEL,), tables)

    def __enter__(self) -> Self:
        """Start it, and wait until the first revision is committed and nothing is under way."""
        try:
            self.publish(FIRST)
            self.start()
            self.wait_committed(FIRST)
            self.wait_alone()
        except BaseException as error:
            error.add_note(self.logs())
            self.destroy()
            raise
        return self

    def publish(self, revision: str, **script: Any) -> None:  # noqa: ANN401  of Script
        """Publish a revision, and compute its answers."""
        made = self.folder / "made"
        publish_scripted(self.hub, revision, made, **{**self._script, **script})
        bundle = convert_scripted(made / f"made-{revision}", self.folder / "bare", revision, ConvertLimits())
        self.answers.add(bundle)
        self.answers.compute(QUESTIONS, [revision])

    def publish_bad(self, revision: str) -> None:
        """Publish a revision that passes the gate: it answers NaN only to one word in the callers' statements."""
        self.publish(revision, overflows_on=WORD)

    def load(
        self,
        clients: int = CALLERS,
        pace: float = CALLER_PAUSE_SECONDS,
        open_channel: Callable[[str], grpc.Channel] | None = None,
    ) -> Load:
        """Callers without retries; `open_channel` makes their channels, by default without TLS."""
        expected = self.answers.compute(QUESTIONS, [FIRST])
        load = Load(self.address, QUESTIONS, expected, clients, pace=pace)
        load.open_channel = open_channel or load.open_channel
        return load

    def arm(self, place: str) -> None:
        """Make the next updater process crash or freeze at a crash point; see `updater.loop.CrashPoints`."""
        self._arm.write_text(place, encoding="utf-8")

    def is_serving(self) -> bool:
        """Whether the model is ready."""
        try:
            return self.control.status().ready
        except grpc.RpcError:
            return False


def write_supervisor(path: Path, updater: str) -> None:
    """Write the shipped supervisord configuration with another updater.

    Raises:
        RuntimeError: the shipped file no longer names the updater as it did.
    """
    shipped = (ROOT / "supervisor.conf").read_text(encoding="utf-8").replace("%(here)s", str(ROOT))
    if f"-m {_UPDATER}" not in shipped:
        raise RuntimeError("supervisor.conf no longer names the updater as it did")
    path.write_text(shipped.replace(f"-m {_UPDATER}", f"-m {updater}"), encoding="utf-8")
