"""Liveness checks of the running programs: when one is restarted, and when it is given up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common import logs
from common.clock import Clock
from common.paths import LIVENESS
from hotslot_watchdog.supervisor import SupervisorEvent

STABLE_SECONDS = 300.0
MIN_CHECK_INTERVAL_SECONDS = 2.0  # delayed ticks arrive together and must not count as separate checks
_RUNNING = "PROCESS_STATE_RUNNING"
_STATE = "PROCESS_STATE_"
_TICK = "TICK_"


class LivenessProbe(Protocol):
    """A check whether a program is live."""

    def is_live(self) -> bool:
        """Check once; may take a few seconds."""
        ...


class HealthProbe:
    """Calls the server's health service for `liveness`, over a new connection each time.

    On the control socket: there connections of clients cannot be in the way, nor TLS and tokens.
    """

    def __init__(self, address: str, timeout_seconds: float) -> None:
        """Does not connect yet.

        Args:
            address: gRPC target of the server's control socket.
            timeout_seconds: for connecting and the call together.
        """
        self._address = address
        self._timeout_seconds = timeout_seconds

    def is_live(self) -> bool:
        """Whether the server answers SERVING in time."""
        request = health_pb2.HealthCheckRequest(service=LIVENESS)
        with grpc.insecure_channel(self._address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=self._timeout_seconds)
            except grpc.RpcError:
                return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


class HeartbeatProbe:
    """Compares a file's modification time with that of the check before; only a change counts, not its value."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = self._read_mtime()

    def is_live(self) -> bool:
        """Whether the file was touched since the last check."""
        before, self._last = self._last, self._read_mtime()
        return self._last not in (0, before)

    def _read_mtime(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


class RestartDecision(StrEnum):
    """The decision on a process after a check."""

    KEEP = "keep"
    RESTART = "restart"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When an unresponsive process is restarted, and when it is given up."""

    initial_delay_seconds: float  # from its start to the first check
    failure_threshold: int  # consecutive failed checks before a restart
    max_restarts: int  # consecutive restarts before it is given up
    stable_seconds: float = STABLE_SECONDS  # without a failed check, after which the restarts count from zero


@dataclass(frozen=True, slots=True)
class ProgramState:
    """The recorded state of one program."""

    pid: int = 0  # 0: it does not run, or its process is unknown
    started_at: float = 0.0  # clock.monotonic()
    failures: int = 0  # consecutive failed checks
    restarts: int = 0  # consecutive
    live_since: float | None = None  # first successful check after the last failed one


def mark_started(state: ProgramState, pid: int, now: float) -> ProgramState:
    """The state with a new running process; unchanged if it is the same process."""
    if pid == state.pid:
        return state
    return ProgramState(pid, now, 0, state.restarts)


def mark_stopped(state: ProgramState) -> ProgramState:
    """The state without a running process, which is not checked."""
    return ProgramState(restarts=state.restarts)


def is_due(state: ProgramState, now: float, policy: RestartPolicy) -> bool:
    """Whether the process runs and its initial delay is over."""
    return state.pid != 0 and now - state.started_at >= policy.initial_delay_seconds


def decide_restart(
    state: ProgramState, now: float, policy: RestartPolicy, *, is_live: bool
) -> tuple[ProgramState, RestartDecision]:
    """Apply the result of one check; returns the new state and what to do with the process.

    Args:
        state: before the check, which was due.
        now: clock.monotonic().
        policy: the limits.
        is_live: the result of the check.
    """
    if is_live:
        since = now if state.live_since is None else state.live_since
        restarts = 0 if now - since >= policy.stable_seconds else state.restarts
        return replace(state, failures=0, restarts=restarts, live_since=since), RestartDecision.KEEP
    failed = replace(state, failures=state.failures + 1, live_since=None)
    if failed.failures < policy.failure_threshold:
        return failed, RestartDecision.KEEP
    if failed.restarts >= policy.max_restarts:
        return failed, RestartDecision.GIVE_UP
    return replace(mark_stopped(failed), restarts=failed.restarts + 1), RestartDecision.RESTART


@dataclass(frozen=True, slots=True)
class MonitorDependencies:
    """Everything outside of a `ProcessMonitor` that it uses."""

    probes: Mapping[str, LivenessProbe]  # by program
    policy: RestartPolicy
    clock: Clock
    log: logs.Logger
    kill: Callable[[int], None]  # kills a process of supervisord's
    on_given_up: Callable[[str], None]  # receives the program's name


class ProcessMonitor:
    """Follows supervisord's events; at each tick it checks every program that is due."""

    def __init__(self, dependencies: MonitorDependencies) -> None:
        """Record no running process yet."""
        self._dependencies = dependencies
        self._states = dict.fromkeys(dependencies.probes, ProgramState())
        self._checked_at = -MIN_CHECK_INTERVAL_SECONDS

    def handle_event(self, event: SupervisorEvent) -> None:
        """Check the programs at a tick; record a started or stopped process otherwise."""
        if event.name.startswith(_TICK):
            self._check_all()
            return
        program = event.fields.get("processname", "")
        if program in self._states and event.name.startswith(_STATE):
            pid = int(event.fields.get("pid", "0")) if event.name == _RUNNING else 0
            self.set_process(program, pid)

    def set_process(self, program: str, pid: int) -> None:
        """Record a program's process id; 0 if it does not run."""
        now, state = self._dependencies.clock.monotonic(), self._states[program]
        self._states[program] = mark_started(state, pid, now) if pid else mark_stopped(state)

    def _check_all(self) -> None:
        dependencies = self._dependencies
        if dependencies.clock.monotonic() - self._checked_at < MIN_CHECK_INTERVAL_SECONDS:
            return
        for program, probe in dependencies.probes.items():
            if is_due(self._states[program], dependencies.clock.monotonic(), dependencies.policy):
                self._check(program, probe)
        self._checked_at = dependencies.clock.monotonic()

    def _check(self, program: str, probe: LivenessProbe) -> None:
        dependencies, before = self._dependencies, self._states[program]
        log, policy = dependencies.log, dependencies.policy
        is_live = probe.is_live()
        after, decision = decide_restart(before, dependencies.clock.monotonic(), policy, is_live=is_live)
        self._states[program] = after
        if not is_live and decision is not RestartDecision.GIVE_UP:
            log.warning("liveness_check_failed", program=program, pid=before.pid, failures=before.failures + 1)
        if decision is RestartDecision.RESTART:
            log.error("unresponsive_process_killed", program=program, pid=before.pid, restarts=after.restarts)
            dependencies.kill(before.pid)
        elif decision is RestartDecision.GIVE_UP and before.failures < policy.failure_threshold:
            log.error("unresponsive_process_given_up", program=program, pid=before.pid, restarts=before.restarts)
            dependencies.on_given_up(program)
