"""Threads that deliver what waits: each repeats its own step, and sleeps while nothing waits."""

from collections.abc import Callable, Mapping
from threading import Event, Thread

from common.clock import SystemClock
from common.failure_log import FailureLog, FailureLogger


class StepThreads:
    """One thread for each step, between `start` and `stop`."""

    def __init__(self, log: FailureLogger, failure_seconds: float) -> None:
        """Start no thread yet.

        Args:
            log: gets a line if a step fails in an unforeseen way.
            failure_seconds: until a step that failed so is repeated.
        """
        self._log, self._failure_seconds = log, failure_seconds
        self._stopping = Event()
        self._wakes: dict[str, Event] = {}
        self._threads: list[Thread] = []

    def start(self, steps: Mapping[str, Callable[[], float | None]]) -> None:
        """Start a thread for each step.

        Args:
            steps: by the thread's name; each returns the seconds until it is called again, None if nothing waits.
        """
        for name, step in steps.items():
            wake = self._wakes[name] = Event()
            thread = Thread(target=self._run, args=(name, step, wake), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def wake(self, name: str) -> None:
        """Something waits for the step of this name. From any thread; without effect before `start`."""
        if wake := self._wakes.get(name):
            wake.set()

    def wake_all(self) -> None:
        """Something may wait for any step. From any thread."""
        for wake in tuple(self._wakes.values()):
            wake.set()

    def stop(self, seconds: float) -> None:
        """Stop the threads; one that still runs its step after so many seconds, for all of them, is left to itself."""
        self._stopping.set()
        self.wake_all()
        clock = SystemClock()
        end = clock.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:  # else the system had no thread for it
                thread.join(max(0.0, end - clock.monotonic()))

    def _run(self, name: str, step: Callable[[], float | None], wake: Event) -> None:
        failures = FailureLog(name, self._log)
        while not self._stopping.is_set():
            wake.clear()  # before the step looks at what waits: what comes meanwhile sets it again
            if self._stopping.is_set():  # it was `stop` that had set it
                return
            pause: float | None = self._failure_seconds
            with failures:
                pause = step()
            if pause is None:
                wake.wait()
            elif pause > 0:
                self._stopping.wait(pause)
