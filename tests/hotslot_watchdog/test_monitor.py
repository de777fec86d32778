"""When a process that runs but does not answer is restarted, and when it is given up."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from common import logs
from hotslot_watchdog.monitor import (
    MonitorDependencies,
    ProcessMonitor,
    ProgramState,
    RestartDecision,
    RestartPolicy,
    decide_restart,
    is_due,
    mark_started,
    mark_stopped,
)
from hotslot_watchdog.supervisor import SupervisorEvent
from tests.hotslot_watchdog.clock import StoppedClock

POLICY = RestartPolicy(initial_delay_seconds=20.0, failure_threshold=3, max_restarts=5, stable_seconds=300.0)
RUNNING = mark_started(ProgramState(), 41, 0.0)


def fail_checks(state: ProgramState, count: int) -> tuple[ProgramState, RestartDecision]:
    """The state and the last decision after so many failed checks."""
    decision = RestartDecision.KEEP
    for _ in range(count):
        state, decision = decide_restart(state, 100.0, POLICY, is_live=False)
    return state, decision


@pytest.mark.parametrize(("now", "due"), [(0.0, False), (19.9, False), (20.0, True)])
def test_a_process_is_checked_after_its_initial_delay(now: float, due: bool) -> None:  # noqa: FBT001  a table's column
    """One that does not run is never checked."""
    assert is_due(RUNNING, now, POLICY) is due
    assert not is_due(mark_stopped(RUNNING), now, POLICY)


def test_a_process_is_restarted_after_three_consecutive_failures() -> None:
    """Two failures, a success and two failures are not enough; the third in a row is."""
    state, decision = fail_checks(RUNNING, 2)
    assert decision is RestartDecision.KEEP
    state, decision = decide_restart(state, 100.0, POLICY, is_live=True)
    state, decision = fail_checks(state, 2)
    assert decision is RestartDecision.KEEP
    state, decision = fail_checks(state, 1)
    assert decision is RestartDecision.RESTART
    assert (state.pid, state.restarts) == (0, 1)


def test_a_process_is_given_up_after_five_consecutive_restarts() -> None:
    """It is restarted five times; the sixth time it is given up."""
    state, decisions = RUNNING, []
    for pid in range(6):
        state, decision = fail_checks(mark_started(state, pid + 1, 0.0), 3)
        decisions.append(decision)
    assert decisions == [RestartDecision.RESTART] * 5 + [RestartDecision.GIVE_UP]


def test_restarts_are_reset_after_a_stable_time() -> None:
    """A single successful check does not reset them; five minutes of successful checks do."""
    restarted = replace(RUNNING, restarts=4)
    state, _ = decide_restart(restarted, 100.0, POLICY, is_live=True)
    assert state.restarts == 4
    state, _ = decide_restart(state, 399.0, POLICY, is_live=True)
    assert state.restarts == 4
    state, _ = decide_restart(state, 400.0, POLICY, is_live=True)
    assert state.restarts == 0


class FakeProbe:
    """Answers as a test sets it, and counts the checks."""

    def __init__(self) -> None:
        self.live = True
        self.checks = 0

    def is_live(self) -> bool:
        self.checks += 1
        return self.live


class World:
    """A monitor of one program, and its recorded actions."""

    def __init__(self) -> None:
        self.clock, self.probe = StoppedClock(), FakeProbe()
        self.killed: list[int] = []
        self.given_up: list[str] = []
        dependencies = MonitorDependencies(
            {"server": self.probe}, POLICY, self.clock, logs.get_logger(), self.killed.append, self.given_up.append
        )
        self.monitor = ProcessMonitor(dependencies)

    def start_process(self, pid: int) -> None:
        """Supervisord reports that the server runs as this process."""
        self.monitor.handle_event(SupervisorEvent("PROCESS_STATE_RUNNING", {"processname": "server", "pid": str(pid)}))

    def tick(self, count: int, seconds: float = 5.0) -> None:
        """Supervisord sends so many ticks."""
        with capture_logs():
            for _ in range(count):
                self.clock.seconds += seconds
                self.monitor.handle_event(SupervisorEvent("TICK_5", {"when": "0"}))


def test_an_unresponsive_process_is_killed_once() -> None:
    """After the initial delay and three failures; then it is not checked until a new process runs."""
    world = World()
    world.start_process(41)
    world.probe.live = False
    world.tick(6)  # at 5 to 30 seconds; checked at 20, 25 and 30
    assert world.killed == [41]
    world.tick(10)
    assert world.killed == [41]
    world.start_process(42)
    world.tick(6)
    assert world.killed == [41, 42]


@pytest.mark.parametrize("state", ["STOPPING", "EXITED", "STARTING", "BACKOFF", "FATAL", "STOPPED", "UNKNOWN"])
def test_a_process_that_does_not_run_is_not_checked(state: str) -> None:
    """A server that drains or has ended cannot answer."""
    world = World()
    world.start_process(41)
    world.monitor.handle_event(SupervisorEvent(f"PROCESS_STATE_{state}", {"processname": "server", "pid": "41"}))
    world.tick(20)
    assert world.probe.checks == 0


def test_delayed_ticks_that_arrive_together_count_once() -> None:
    """A listener that was blocked checks once, not once for each tick that waited."""
    world = World()
    world.start_process(41)
    world.tick(3)
    world.probe.live = False
    world.tick(1)
    world.tick(10, seconds=0.1)
    assert world.killed == []


def test_a_program_is_given_up_once() -> None:
    """After the last restart it is neither killed nor reported again."""
    world = World()
    world.probe.live = False
    for pid in range(1, 7):
        world.start_process(pid)
        world.tick(10)
    assert world.killed == [1, 2, 3, 4, 5]
    assert world.given_up == ["server"]


def test_events_of_other_programs_are_ignored() -> None:
    """So are events of a kind that the monitor does not know."""
    world = World()
    world.monitor.handle_event(SupervisorEvent("PROCESS_STATE_RUNNING", {"processname": "watchdog", "pid": "7"}))
    world.monitor.handle_event(SupervisorEvent("SUPERVISOR_STATE_CHANGE_RUNNING", {}))
    world.tick(20)
    assert world.probe.checks == 0
