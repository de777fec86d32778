"""Starts runner processes. Imports little, so that a runner can be started before the server's own imports."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from common.clock import Clock, SystemClock
from common.settings import inherit_environment
from inference.call_record import CallRecord, create_memory
from inference.server.runner_client.fork_failures import ForkFailures
from inference.server.runner_client.fork_server import STEADY_SECONDS, ForkedProcess, ForkServer, Report, reap_killed
from inference.server.runner_client.liveness import Timeouts
from inference.server.runner_client.orphans import adopt_orphans, reap_orphans

# How long an OpenMP thread spins before it sleeps: about 0.1 ms here; the default of GNU OpenMP (in torch) is
# milliseconds. The threads of a large model's call wait for each other about a thousand times, and a spinning thread
# takes the CPU that the late one needs. On 2 CPUs beside one busy process a prediction of 0.5 s took more than 3.3 s
# with the default and takes 1.4 s with this value. On an idle machine it costs 7 %.
_OPENMP_SPIN = {"GOMP_SPINCOUNT": "10000"}

# torch takes GPU memory in segments that grow. Otherwise it keeps what it has taken for calls of one size beside that
# of the next: 3,390 MiB were in use on an NVIDIA H200 where 2,615 were planned, and 2,728 with growing segments.
_GPU_MEMORY, _OLDER_NAME = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "PYTORCH_CUDA_ALLOC_CONF"

# OpenBLAS, in NumPy, starts threads when it is loaded, and a fork server may have one thread only; torch multiplies.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}

SEND_BYTES = 1 << 20  # that the data socket takes at once, if the system allows it: a frame of several pictures
MAX_WAITING = 4  # runners that are programs of their own; each has about 300 MB
MAX_REPLACED = 3  # waiting runners that end before one is taken; then the next is started when it is needed
MAX_GIVEN_UP = 2  # runners of a model that SIGKILL has not ended: each keeps its memory, and so would the next
START_SECONDS = 120.0  # for the fork server's imports, if no specification has a limit

_PROGRAM = (
    sys.executable,
    "-P",  # no imports from the working directory
    "-m",
    "hotslot_watchdog.launch",  # refuses an environment in which another package hides ours
    "-m",
)


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """How runners are started, and their timeouts."""

    engine: str  # imported before Hello; "" for none
    start_seconds: float  # from start to Hello
    load_stall_seconds: float  # without progress of a load
    extra_engines: Mapping[str, str] = field(default_factory=dict)  # name to "module:function", from settings only
    device_policy: str = "auto"  # "auto", "cpu", "cuda", "cuda:N": which devices Hello may name
    heartbeat_seconds: float = 0.1
    silence_seconds: float = 2.0  # without a heartbeat, the runner is stuck
    retire_seconds: float = 10.0  # from retire to kill
    oom_score_adj: int = 0  # added to the inherited value until the runner serves
    prepare_processes: int = 0  # 0: one for each usable CPU
    prepare_memory_bytes: int = 512 << 20
    prepare_timeout_seconds: float = 30.0
    fork: bool = False  # from the fork server, if there is one
    kernels: str = ""  # folder of compiled kernels; "": none

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts for the liveness monitor."""
        return Timeouts(self.start_seconds, self.silence_seconds, self.load_stall_seconds)


@dataclass(frozen=True, slots=True)
class StartedRunner:
    """A runner process and this side's ends of what connects it."""

    process: subprocess.Popen[bytes] | ForkedProcess
    data: socket.socket
    control: socket.socket
    call_record: CallRecord
    fork_failures: ForkFailures | None = None  # told whether it reaches Hello, if it is forked
    on_given_up: Callable[[], None] = lambda: None  # called if SIGKILL does not end it in time

    def discard(self) -> None:
        """Kill the process, which nobody uses; its end is not awaited, a driver may hold it."""
        self.process.kill()
        self.data.close()
        self.control.close()
        self.call_record.close()


def start_runner(
    spec: RunnerSpec, forks: ForkServer | None = None, failures: ForkFailures | None = None
) -> StartedRunner:
    """Start a runner process, on the thread that will run the loop: its parent-death signal follows that thread.

    Args:
        spec: of the runner.
        forks: is asked to fork it; None to start a program of its own.
        failures: told whether a forked one reaches Hello.

    Raises:
        OSError: the system has no process or descriptor left, or the fork server cannot be asked.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        (data, their_data), (control, their_control) = (_open_socketpair(ours, theirs) for _ in ("data", "control"))
        data.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        memory = create_memory()
        theirs.callback(os.close, memory)
        record = CallRecord(memory)
        ours.callback(record.close)
        ends = (their_data.fileno(), their_control.fileno(), memory)
        process = _start_program(spec, ends) if forks is None else forks.fork(list_options(spec), ends)
        ours.pop_all()
    return StartedRunner(process, data, control, record, failures)


def _start_program(spec: RunnerSpec, ends: tuple[int, int, int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # this interpreter, arguments from settings
        list_arguments(spec, *ends),
        stdin=subprocess.DEVNULL,
        close_fds=True,
        pass_fds=ends,
        env=runner_environment(),
    )


class RunnerStarter:
    """Starts runners: forked, where their specification says so and the fork server answers, else as programs.

    Importing a runner's engine takes seconds: longer than importing the server, and longer than a load. So the first
    runners are started before the server's own imports, and wait for whoever takes the first of their specification.
    """

    def __init__(
        self, specs: Sequence[RunnerSpec] = (), clock: Clock | None = None, forks: ForkServer | None = None
    ) -> None:
        self._runners: list[tuple[RunnerSpec, StartedRunner]] = []
        start_seconds = max((spec.start_seconds for spec in specs), default=START_SECONDS)
        self._clock = clock or SystemClock()
        self._forks = forks or ForkServer(list_fork_arguments, start_seconds, self._clock)
        self._fork_failures = ForkFailures(self._clock, self._forks.warn)
        self._started: weakref.WeakSet[subprocess.Popen[bytes] | ForkedProcess] = weakref.WeakSet()
        self._engines = list(dict.fromkeys(spec.engine for spec in specs if spec.fork))
        self._live_engines: frozenset[str] | None = None  # after a reload: of all models; others start as programs
        self._is_adopting = self._is_closed = False
        # By model, until they are reaped.
        self._given_up: list[tuple[str, subprocess.Popen[bytes] | ForkedProcess]] = []
        self._killed: list[subprocess.Popen[bytes] | ForkedProcess] = []  # were never taken; until they are reaped
        self._ended: list[RunnerSpec] = []  # of waiting runners that have ended and are not replaced yet
        self._replaced, self._replaced_at = 0, 0.0  # waiting runners since one was taken, or a steady minute has passed
        with contextlib.suppress(OSError):  # reported when it is started again
            for spec in specs:
                self._runners.append((spec, self._start(spec)))

    @property
    def fork_server(self) -> ForkServer:
        """The process that forks runners, for its metrics."""
        return self._forks

    def prepare(self, spec: RunnerSpec) -> None:
        """Start a runner of this specification, unless one waits to be taken; call it on the loop's thread.

        The oldest that waits is ended for it if there are many: changed settings may have left it without a model.
        """
        self._discard_ended()
        self._ended = [ended for ended in self._ended if ended != spec]
        if not any(waiting == spec for waiting, _ in self._runners):
            self._discard(self._runners[: -(MAX_WAITING - 1)])
            with contextlib.suppress(OSError):  # reported when it is started again
                self._runners.append((spec, self._start(spec)))

    def take(self, spec: RunnerSpec, model: str = "") -> StartedRunner:
        """A runner of this specification that waits, or a new one, for a model.

        Raises:
            OSError: it cannot be started, `close` was called, or MAX_GIVEN_UP of the model have not ended yet.
        """
        self._given_up = [row for row in self._given_up if row[1].returncode is None]
        held = sum(owner == model for owner, _ in self._given_up)
        runner = self._find_waiting(spec)
        if runner is None and held >= MAX_GIVEN_UP:
            raise OSError(
                errno.EBUSY, f"{held} runners do not end after SIGKILL; another one starts when one has ended"
            )
        runner = runner or self._start(spec)
        return replace(runner, on_given_up=lambda: self._given_up.append((model, runner.process)))

    def _find_waiting(self, spec: RunnerSpec) -> StartedRunner | None:
        self._discard_ended()
        self._ended = [ended for ended in self._ended if ended != spec]
        for row in self._runners:
            if row[0] == spec:
                self._runners.remove(row)
                self._replaced = 0
                return row[1]
        return None

    def attach(self, report: Report, warn: Report) -> None:
        """Receive the fork server's answers on the running loop; then call `tick` every TICK_SECONDS.

        Args:
            report: gets the events of the fork server, with their fields.
            warn: gets its failures.
        """
        self._forks.attach(report, warn)

    def tick(self) -> None:
        """Replace the fork server and waiting runners that have ended, a few times in a row; reap orphans."""
        self._follow_engines()
        self._forks.tick()
        self._killed = [process for process in self._killed if process.poll() is None]
        self._replace_ended()
        if self._is_adopting and not self._forks.is_asked:
            reap_orphans(self._list_known())

    def retain(self, specs: Sequence[RunnerSpec]) -> None:
        """Keep only what these specifications, those of all models after a reload, need.

        Waiting runners of others are ended now. With the next tick the fork server is ended, or restarted with the
        engines that it lacks.
        """
        self._engines = list(dict.fromkeys(spec.engine for spec in specs if spec.fork))
        self._live_engines = frozenset(self._engines)
        self._discard([row for row in self._runners if row[0] not in specs])
        self._ended = [spec for spec in self._ended if spec in specs]

    def discard_waiting(self) -> None:
        """End the runners that were not taken."""
        self._discard(list(self._runners))
        self._ended.clear()

    def close(self) -> None:
        """End the runners that were not taken, and the fork server; no runner is started from now on."""
        self._is_closed = True
        self.discard_waiting()
        self._forks.close()
        reap_killed(self._killed)
        if self._is_adopting:
            adopt_orphans(adopts=False)
            self._is_adopting = False

    def _start(self, spec: RunnerSpec) -> StartedRunner:
        if self._is_closed:
            raise OSError(errno.ESHUTDOWN, "the server is stopping")
        if spec.fork and (self._live_engines is None or spec.engine in self._live_engines):
            self._prepare_forks(spec)
            if self._forks.can_fork and self._fork_failures.may_fork:
                try:
                    return self._know(start_runner(spec, self._forks, self._fork_failures))
                except OSError as error:
                    self._fork_failures.record(repr(error))
        return self._know(start_runner(spec))

    def _know(self, runner: StartedRunner) -> StartedRunner:
        self._started.add(runner.process)
        return runner

    def _prepare_forks(self, spec: RunnerSpec) -> None:
        """Start the fork server if there is none, or if the environment of runners has changed since."""
        if spec.engine not in self._engines:
            self._engines.append(spec.engine)
        environment = _fork_environment()
        if self._forks.is_watched and self._forks.environment == environment:
            return
        if not self._is_adopting:
            try:
                adopt_orphans()
            except OSError as error:
                self._forks.give_up(environment, repr(error))
                return
            self._is_adopting = True
        self._forks.start(self._engines, environment)

    def _list_known(self) -> set[int]:
        """Process ids of children that are awaited elsewhere."""
        return {self._forks.pid} | {process.pid for process in self._started if process.returncode is None}

    def _follow_engines(self) -> None:
        """End the fork server if no model needs it; restart it with engines that it lacks. No fork is interrupted."""
        if not self._forks.is_watched or self._forks.is_asked:
            return
        if not self._engines:
            self._forks.stop()
        elif self._is_adopting and not set(self._engines) <= set(self._forks.engines):
            self._forks.start(self._engines, _fork_environment())

    def _replace_ended(self) -> None:
        """Start waiting runners again, a few times in a row."""
        self._discard_ended()
        now = self._clock.monotonic()
        if now - self._replaced_at >= STEADY_SECONDS:
            self._replaced = 0
        ended, self._ended = self._ended, []
        for spec in ended:
            self._replaced, self._replaced_at = self._replaced + 1, now
            if self._replaced <= MAX_REPLACED:
                self.prepare(spec)

    def _discard_ended(self) -> None:
        """Remove the runners that have ended by themselves, as when the system needed their memory."""
        ended = [row for row in self._runners if row[1].process.poll() is not None]
        self._discard(ended)
        self._ended += [spec for spec, _ in ended]

    def _discard(self, rows: Sequence[tuple[RunnerSpec, StartedRunner]]) -> None:
        for row in rows:
            self._runners.remove(row)
            row[1].discard()
            self._killed.append(row[1].process)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what was not taken."""
        self.close()


def _open_socketpair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    our, their = socket.socketpair()
    return ours.enter_context(our), theirs.enter_context(their)


def list_arguments(spec: RunnerSpec, data_fd: int, control_fd: int, call_record_fd: int) -> list[str]:
    """The command line of a runner that inherits these descriptors."""
    return [
        *_PROGRAM,
        "inference.runner.main",
        f"--data-fd={data_fd}",
        f"--control-fd={control_fd}",
        f"--call-record-fd={call_record_fd}",
        *list_options(spec),
    ]


def list_fork_arguments(engines: Sequence[str], connection_fd: int) -> list[str]:
    """The command line of a fork server that inherits this descriptor."""
    imports = [f"--engine={engine}" for engine in engines]
    parent = f"--parent={os.getpid()}"
    return [*_PROGRAM, "inference.runner.fork_server", f"--connection-fd={connection_fd}", parent, *imports]


def list_options(spec: RunnerSpec) -> list[str]:
    """The arguments of a runner, without descriptors."""
    extra = [f"--extra-engine={name}={where}" for name, where in spec.extra_engines.items()]
    return [
        f"--parent={os.getpid()}",
        f"--engine={spec.engine}",
        f"--devices={spec.device_policy}",
        f"--heartbeat-seconds={spec.heartbeat_seconds}",
        f"--oom-score-adj={spec.oom_score_adj}",
        f"--prepare-processes={spec.prepare_processes}",
        f"--prepare-memory-bytes={spec.prepare_memory_bytes}",
        f"--prepare-timeout-seconds={spec.prepare_timeout_seconds}",
        f"--kernels={spec.kernels}",
        *extra,
    ]


def _fork_environment() -> dict[str, str]:
    return {**runner_environment(), **_ONE_THREAD}


def runner_environment() -> dict[str, str]:
    """The environment of a runner: this process's own, the path of this build, settings of torch."""
    build = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    inherited = inherit_environment()
    memory = {} if _OLDER_NAME in inherited else _GPU_MEMORY
    return {**_OPENMP_SPIN, **memory, **inherited, "PYTHONPATH": build}
