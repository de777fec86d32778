"""Steps are repeated while something waits, woken when something comes, and end at once."""

import threading
import time

import pytest

from common import step_threads
from common.step_threads import StepThreads
from tests.common.clock import KeptLog

LIMIT_SECONDS = 10.0  # the machine may be busy


def test_a_step_is_called_again_when_something_waits() -> None:
    """At once while it says so, else when it is woken; a failure is logged and ends nothing."""
    log, called = KeptLog(), threading.Semaphore(0)
    answers = iter([0.0, None, OSError("unforeseen"), None])

    def step() -> float | None:
        called.release()
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    threads = StepThreads(log, failure_seconds=0.0)
    threads.wake("one")  # before there is any
    threads.start({"one": step})
    assert [called.acquire(timeout=LIMIT_SECONDS) for _ in range(2)] == [True, True]
    threads.wake("one")
    assert [called.acquire(timeout=LIMIT_SECONDS) for _ in range(2)] == [True, True]
    threads.stop(LIMIT_SECONDS)
    assert [(name, fields["task"]) for name, fields in log.lines] == [("background_task_failed", "one")]


def test_a_stop_between_two_steps_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes just before the thread clears its wake, which would then sleep until its limit."""
    stopped = threading.Event()

    def stop() -> None:
        threads.stop(LIMIT_SECONDS)
        stopped.set()

    class ClearedLate(threading.Event):
        def clear(self) -> None:
            threading.Thread(target=stop).start()
            self.wait(LIMIT_SECONDS)  # until `stop` has set it
            super().clear()

    monkeypatch.setattr(step_threads, "Event", ClearedLate)
    threads = StepThreads(KeptLog(), failure_seconds=0.0)
    threads.start({"one": lambda: None})
    assert stopped.wait(LIMIT_SECONDS / 2)


def test_a_step_that_hangs_is_left_to_itself() -> None:
    """The time that `stop` waits is for all threads together."""
    free = threading.Event()
    threads = StepThreads(KeptLog(), failure_seconds=0.0)
    threads.start({name: lambda: free.wait() and None for name in ("one", "two", "three")})
    begun = time.monotonic()
    threads.stop(0.1)
    free.set()
    assert 0.1 <= time.monotonic() - begun < LIMIT_SECONDS
