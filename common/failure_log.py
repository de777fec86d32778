"""Repeated work that goes on after a failure; the log has the first one, some, and that it works again."""

import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from common.clock import Clock, SystemClock

AGAIN_SECONDS = 60.0  # between two lines about failures
PAUSE_SECONDS = 0.05  # after a failure, before the work is repeated
CALM_SECONDS = 5.0  # without a failure, until the work counts as repaired


class FailureLogger(Protocol):
    """The part of a logger that `FailureLog` uses."""

    def info(self, event: str, **fields: Any) -> Any:  # noqa: ANN401  structlog's type
        """Write a line."""
        ...

    def error(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write a line that an operator must see."""
        ...


class FailureLog:
    """Each `with` of it is one run of some work: an exception is logged and goes no further. From one thread.

    Logs `background_task_failed` at the first failure and then once in AGAIN_SECONDS, and `background_task_recovered`
    when the work has run without a failure for CALM_SECONDS.
    """

    def __init__(self, task: str, log: FailureLogger, clock: Clock | None = None) -> None:
        """Nothing has failed.

        Args:
            task: names the work in the log.
            log: of the process.
            clock: for the time between two lines.
        """
        self._task, self._log, self._clock = task, log, clock or SystemClock()
        self.failures = 0  # since it has worked
        self._logged_at = -math.inf
        self._failed_at = 0.0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Log a failure or the end of failures; a request to end, as by a cancelled task, is passed on."""
        if error is None:
            if self.failures:
                self._note_success()
            return False
        if not isinstance(error, Exception):
            return False
        now = self._clock.monotonic()
        self.failures, self._failed_at = self.failures + 1, now
        if now - self._logged_at >= AGAIN_SECONDS:
            self._logged_at = now
            self._log.error("background_task_failed", task=self._task, failures=self.failures, exc_info=error)
        return True

    def _note_success(self) -> None:
        if self._clock.monotonic() - self._failed_at >= CALM_SECONDS:
            self._log.info("background_task_recovered", task=self._task, failures=self.failures)
            self.failures, self._logged_at = 0, -math.inf


def start_repeating(task: str, work: Callable[[], object], log: FailureLogger) -> threading.Thread:
    """Repeat some work on a thread of its own as long as the process lives, also after a failure.

    Args:
        task: names the thread, and the work in the log.
        work: must wait by itself for what it works on.
        log: of the process.
    """
    failures, never = FailureLog(task, log), threading.Event()

    def run() -> None:
        while True:
            before = failures.failures
            with failures:
                work()
            if failures.failures > before:
                never.wait(PAUSE_SECONDS)  # it may have failed before it waited

    thread = threading.Thread(target=run, name=task, daemon=True)
    thread.start()
    return thread
