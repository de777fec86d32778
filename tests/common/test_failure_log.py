"""Repeated work goes on after a failure: the log has the first one, some, and that it works again."""

import asyncio
import threading

import pytest

from common.failure_log import AGAIN_SECONDS, CALM_SECONDS, FailureLog, start_repeating
from inference.server.background import BackgroundTasks
from tests.common.clock import KeptLog, SimClock

STEP_SECONDS = 0.05


def fail_for(seconds: float, failures: FailureLog, clock: SimClock, error: Exception) -> None:
    """Work that fails at each step."""
    for _ in range(round(seconds / STEP_SECONDS)):
        clock.advance(STEP_SECONDS)
        with failures:
            raise error


def work_for(seconds: float, failures: FailureLog, clock: SimClock) -> None:
    """Work that does what it should."""
    for _ in range(round(seconds / STEP_SECONDS) + 1):
        clock.advance(STEP_SECONDS)
        with failures:
            pass


def test_a_failure_is_logged_once_and_its_end_once() -> None:
    """With the number of failures, and what failed."""
    log, clock = KeptLog(), SimClock()
    failures = FailureLog("memory", log, clock)
    fail_for(2.0, failures, clock, OSError(24, "Too many open files"))
    work_for(3 * CALM_SECONDS, failures, clock)
    (failed, first), (recovered, last) = log.lines
    assert (failed, first["task"], first["failures"]) == ("background_task_failed", "memory", 1)
    assert isinstance(first["exc_info"], OSError)
    assert (recovered, last) == ("background_task_recovered", {"task": "memory", "failures": 40})


def test_what_fails_for_long_is_logged_once_a_minute() -> None:
    """Not twenty times a second."""
    log, clock = KeptLog(), SimClock()
    fail_for(4 * AGAIN_SECONDS, FailureLog("memory", log, clock), clock, RuntimeError("can't start new thread"))
    assert log.events == ["background_task_failed"] * 4


def test_what_fails_now_and_then_is_not_logged_each_time() -> None:
    """Work that fails at every second step has not recovered between two failures."""
    log, clock = KeptLog(), SimClock()
    failures = FailureLog("memory", log, clock)
    for _ in range(round(AGAIN_SECONDS / 2 / STEP_SECONDS)):
        fail_for(STEP_SECONDS, failures, clock, OSError())
        clock.advance(STEP_SECONDS)
        with failures:
            pass
    assert log.events == ["background_task_failed"]


def test_a_request_to_end_is_no_failure() -> None:
    """It is passed on."""
    log = KeptLog()
    with pytest.raises(KeyboardInterrupt), FailureLog("memory", log, SimClock()):
        raise KeyboardInterrupt
    assert log.events == []


def test_a_thread_goes_on_after_a_failure() -> None:
    """The next run is done as if the one before had not failed."""
    log, runs, is_done, forever = KeptLog(), [0], threading.Event(), threading.Event()

    def work() -> None:
        runs[0] += 1
        if runs[0] == 1:
            raise UnicodeDecodeError("utf-8", b"\xc9", 0, 1, "invalid continuation byte")
        is_done.set()
        forever.wait()

    start_repeating("reload-signal", work, log)
    assert is_done.wait(10)
    assert log.events == ["background_task_failed"]


async def test_a_failed_step_ends_neither_the_others_nor_its_repetition() -> None:
    """Whether it fails before or after it has waited; cancelling ends them all."""
    log, runs = KeptLog(), {"sync": 0, "async": 0, "good": 0}
    enough = asyncio.Event()

    def fail() -> None:
        runs["sync"] += 1
        raise OSError(24, "Too many open files")

    async def wait_and_fail() -> None:
        runs["async"] += 1
        await asyncio.sleep(0)
        raise RuntimeError("can't start new thread")

    async def succeed() -> None:
        runs["good"] += 1
        if runs["sync"] > 1 and runs["async"] > 1:
            enough.set()

    background = BackgroundTasks(log, SimClock())
    background.add("sync", fail, 0.001)
    background.add("async", wait_and_fail)
    background.add("good", succeed, lambda: 0.001)
    async with asyncio.TaskGroup() as tasks:
        running = background.start(tasks)
        await asyncio.wait_for(enough.wait(), 10)
        for task in running:
            task.cancel()

    assert runs["good"] > 1
    assert sorted(fields["task"] for _, fields in log.lines) == ["async", "sync"]
