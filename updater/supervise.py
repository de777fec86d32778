"""Keeps one model's loop running: a loop that ends by an exception is started again, with growing pauses."""

import threading
from collections.abc import Callable

from common.clock import Clock
from updater.core.ports import JournalUnusable
from updater.loop import ModelLoop
from updater.metrics import Observer

RESTART_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)  # before a loop is built or started again; the last one from then on
CALM_SECONDS = 600.0  # a loop that ran so long begins with the first pause again


def restart_pause(failures: int) -> float:
    """Seconds before a loop that has failed so often in a row is tried again."""
    return RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1]


class LoopSupervisor:
    """Runs one model's loop. `run` in a thread of its own; the rest from any."""

    def __init__(
        self,
        model: str,
        loop: ModelLoop,
        clock: Clock,
        observer: Observer,
        stopping: threading.Event,
        on_unusable: Callable[[JournalUnusable], None],
        wake: threading.Event | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            model: name of the model.
            loop: of the model.
            clock: of the process.
            observer: gets the failures.
            stopping: set when the process stops.
            on_unusable: called when the journal cannot be trusted; the loop is not started again then.
            wake: set when an operator's command has come, or with `stopping`; it ends a pause, so that whoever wants to
                roll back need not wait for it. Default: a pause ends with `stopping`.
        """
        self._model = model
        self._loop = loop
        self._clock = clock
        self._observer = observer
        self._stopping = stopping
        self._on_unusable = on_unusable
        self._wake = wake
        self._is_running = False

    @property
    def is_running(self) -> bool:
        """Whether the loop runs: it has not failed, and the journal can be trusted."""
        return self._is_running

    def run(self) -> None:
        """Run the loop until the process stops or the journal cannot be trusted."""
        failures = 0
        while not self._stopping.is_set():
            began = self._clock.monotonic()
            try:
                if failures:
                    self._loop.reload()
                self._is_running = True
                self._loop.run()
            except JournalUnusable as error:
                self._is_running = False
                self._on_unusable(error)
                return
            except Exception as error:  # noqa: BLE001  a bug, or the lack of something that was not foreseen
                self._is_running = False
                is_calm = self._clock.monotonic() - began >= CALM_SECONDS
                failures = 1 if is_calm else failures + 1
                self._pause(self._report(error, failures))
            else:
                return

    def _pause(self, seconds: float) -> None:
        """Wait; a command that comes meanwhile ends one pause, not the next one."""
        if self._wake is None:
            self._stopping.wait(seconds)
            return
        self._wake.wait(seconds)
        self._wake.clear()

    def _report(self, error: Exception, failures: int) -> float:
        """Show a failure; returns the pause before the next start."""
        pause, kind = restart_pause(failures), type(error).__name__
        self._observer.report_crash(self._model, error, failures, pause)
        how_often = f" {failures} times in a row" if failures > 1 else ""
        self._loop.publisher.report_fault(
            f"the update loop has failed{how_often} ({kind}; see loop_crashed in the log) and is started again after "
            f"{pause:g} s; the server keeps serving"
        )
        return pause
