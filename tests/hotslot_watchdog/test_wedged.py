"""When a process that runs but does not answer is started anew, and when it is given up."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from common import logs
from hotslot_watchdog.protocol import Event
from hotslot_watchdog.watch import Patience, Verdict, Watch, Watched, WatchParts, began, ended, is_due, judge
from tests.hotslot_watchdog.clock import StoodClock

PATIENCE = Patience(grace_seconds=20.0, misses=3, restarts=5, calm_seconds=300.0)
RUNNING = began(Watched(), 41, 0.0)


def misses(watched: Watched, count: int) -> tuple[Watched, Verdict]:
    """Ask in vain so often."""
    verdict = Verdict.LEAVE
    for _ in range(count):
        watched, verdict = judge(watched, 100.0, PATIENCE, is_live=False)
    return watched, verdict


@pytest.mark.parametrize(("now", "due"), [(0.0, False), (19.9, False), (20.0, True)])
def test_a_process_that_has_just_begun_is_not_asked(now: float, due: bool) -> None:  # noqa: FBT001  a table's column
    """It is given its grace; one that does not run is never asked."""
    assert due is is_due(RUNNING, now, PATIENCE)
    assert not is_due(ended(RUNNING), now, PATIENCE)


def test_misses_in_a_row_end_it_and_one_answer_forgives_them() -> None:
    """Two misses, an answer and two misses are no reason; three in a row are."""
    watched, verdict = misses(RUNNING, 2)
    assert Verdict.LEAVE is verdict
    watched, verdict = judge(watched, 100.0, PATIENCE, is_live=True)
    watched, verdict = misses(watched, 2)
    assert Verdict.LEAVE is verdict
    watched, verdict = misses(watched, 1)
    assert Verdict.RESTART is verdict
    assert (watched.pid, watched.restarts) == (0, 1)


def test_after_five_restarts_in_a_row_it_is_given_up() -> None:
    """Five times it is started anew; the sixth time nobody tries again."""
    watched, verdicts = RUNNING, []
    for pid in range(6):
        watched, verdict = misses(began(watched, pid + 1, 0.0), 3)
        verdicts.append(verdict)
    assert verdicts == [Verdict.RESTART] * 5 + [Verdict.GIVE_UP]


def test_an_answer_now_and_then_does_not_make_the_row_shorter() -> None:
    """Restarts are forgotten after minutes of good answers, not after one of them."""
    restarted = replace(RUNNING, restarts=4)
    watched, _ = judge(restarted, 100.0, PATIENCE, is_live=True)
    assert watched.restarts == 4
    watched, _ = judge(watched, 399.0, PATIENCE, is_live=True)
    assert watched.restarts == 4
    watched, _ = judge(watched, 400.0, PATIENCE, is_live=True)
    assert watched.restarts == 0


class Program:
    """A watched program as a test wants it."""

    def __init__(self) -> None:
        self.lives = True
        self.asked = 0

    def is_live(self) -> bool:
        self.asked += 1
        return self.lives


class World:
    """A watch over one program, with what it has done."""

    def __init__(self) -> None:
        self.clock, self.program = StoodClock(), Program()
        self.killed: list[int] = []
        self.given_up: list[str] = []
        parts = WatchParts(
            {"server": self.program}, PATIENCE, self.clock, logs.get_logger(), self.killed.append, self.given_up.append
        )
        self.watch = Watch(parts)

    def runs(self, pid: int) -> None:
        """An event says that it runs."""
        self.watch.see(Event("PROCESS_STATE_RUNNING", {"processname": "server", "pid": str(pid)}))

    def ticks(self, count: int, seconds: float = 5.0) -> None:
        """So many ticks pass."""
        with capture_logs():
            for _ in range(count):
                self.clock.seconds += seconds
                self.watch.see(Event("TICK_5", {"when": "0"}))


def test_a_wedged_process_is_killed_by_its_number_once() -> None:
    """After its grace and three misses; then nothing, until another process runs."""
    world = World()
    world.runs(41)
    world.program.lives = False
    world.ticks(6)  # 5 to 30 seconds: asked at 20, 25 and 30
    assert world.killed == [41]
    world.ticks(10)
    assert world.killed == [41]
    world.runs(42)
    world.ticks(6)
    assert world.killed == [41, 42]


@pytest.mark.parametrize("state", ["STOPPING", "EXITED", "STARTING", "BACKOFF", "FATAL", "STOPPED", "UNKNOWN"])
def test_what_does_not_run_is_not_asked(state: str) -> None:
    """A server that drains, or has ended, has nobody to answer."""
    world = World()
    world.runs(41)
    world.watch.see(Event(f"PROCESS_STATE_{state}", {"processname": "server", "pid": "41"}))
    world.ticks(20)
    assert world.program.asked == 0


def test_ticks_that_come_together_count_once() -> None:
    """A listener that was held up asks once, not once for each tick that waited."""
    world = World()
    world.runs(41)
    world.ticks(3)
    world.program.lives = False
    world.ticks(1)
    world.ticks(10, seconds=0.1)
    assert world.killed == []


def test_what_is_given_up_is_told_once() -> None:
    """After the last restart it is left alone."""
    world = World()
    world.program.lives = False
    for pid in range(1, 7):
        world.runs(pid)
        world.ticks(10)
    assert world.killed == [1, 2, 3, 4, 5]
    assert world.given_up == ["server"]


def test_other_programs_and_odd_events_are_left_alone() -> None:
    """Events of what nobody watches change nothing."""
    world = World()
    world.watch.see(Event("PROCESS_STATE_RUNNING", {"processname": "watchdog", "pid": "7"}))
    world.watch.see(Event("SUPERVISOR_STATE_CHANGE_RUNNING", {}))
    world.ticks(20)
    assert world.program.asked == 0
