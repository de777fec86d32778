"""What the server does beside its calls: steps that are repeated until the server ends, also after a failed one."""

import asyncio
from collections.abc import Awaitable, Callable

from common.clock import Clock
from common.failure_log import PAUSE_SECONDS, FailureLog, FailureLogger

Step = Callable[[], "Awaitable[None] | None"]
Seconds = Callable[[], float]


class BackgroundTasks:
    """Repeats steps on the running loop. A step that fails is logged: it ends neither the server nor the next step."""

    def __init__(self, log: FailureLogger, clock: Clock) -> None:
        self._log, self._clock = log, clock
        self._steps: list[tuple[str, Step, Seconds]] = []

    def add(self, task: str, step: Step, pause_seconds: float | Seconds = 0.0) -> None:
        """Add a step.

        Args:
            task: names it in the log.
            step: is called, and awaited if it is a coroutine.
            pause_seconds: between two steps; 0 for a step that waits by itself.
        """
        pause = pause_seconds if callable(pause_seconds) else lambda: pause_seconds
        self._steps.append((task, step, pause))

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Repeat the steps, each in a task of its own, until it is cancelled."""
        return [tasks.create_task(self._repeat(*one)) for one in self._steps]

    async def _repeat(self, task: str, step: Step, pause: Seconds) -> None:
        failures = FailureLog(task, self._log, self._clock)
        while True:
            before = failures.failures
            with failures:
                pending = step()
                if pending is not None:
                    await pending
            seconds = pause()
            is_failed = failures.failures > before
            await asyncio.sleep(max(seconds, PAUSE_SECONDS) if is_failed else seconds)  # it may not have waited
