"""The thread of one model: runs its update loop, and then the loop with other settings.

A model whose settings change ends its loop as an updater does that stops in good order, and a loop with the new
settings continues from the journal, in the same thread: two loops of one model never run side by side.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from common import logs
from common.clock import Clock
from updater.compose import ModelUpdater
from updater.core.ports import JournalUnusable
from updater.loop import GRACE_SECONDS
from updater.metrics import Observer
from updater.supervise import LoopSupervisor

REBUILD_SECONDS = 5.0  # between two attempts to build the loop of a model


@dataclass(frozen=True, slots=True)
class BuiltLoop:
    """A loop that was built, and what stops it."""

    model: ModelUpdater
    supervisor: LoopSupervisor
    stopping: threading.Event

    def stop(self) -> None:
        """End the loop; a long step is interrupted."""
        self.stopping.set()
        self.model.wake.set()


class ModelThread:
    """The thread of one model: runs its loop, then the next one, until there is none."""

    def __init__(
        self,
        name: str,
        built: BuiltLoop | None,
        on_next: "Callable[[BuiltLoop | None], None]",
        log: logs.Logger,
        clock: Clock,
        observer: Observer,
        on_unusable: Callable[[JournalUnusable], None],
    ) -> None:
        """Start nothing.

        Args:
            name: of the model.
            built: the first loop; None if it could not be built: `change` must say how before the thread is started.
            on_next: called with each further loop, with None once the model is removed; must not wait.
            log: of the process.
            clock: of the process.
            observer: counts the attempts to build a loop that have failed.
            on_unusable: called when a loop cannot be built because the journal cannot be trusted.
        """
        self.built = built
        self._name = name
        self._on_next = on_next
        self._log, self._clock, self._observer = log, clock, observer
        self._on_unusable = on_unusable
        self._lock = threading.Lock()  # of the three below
        self._next: Callable[[], BuiltLoop | None] | None = None
        self._is_stopping = False
        self._is_removed = False
        self._again = threading.Event()  # set when one of the first two is
        self._fault = ""  # of the last attempt to build a loop, for people; empty if it did not fail
        self._failures = 0  # attempts in a row
        self._logged = ""  # the error of the last one, of which the log has the traceback
        # clock.monotonic() by which the attempt in progress must be over; inf before the next one; None: the loop runs
        self._due: float | None = None
        self.thread = threading.Thread(target=self._run, name=f"model-{name}", daemon=True)

    def change(self, build: Callable[[], BuiltLoop | None]) -> bool:
        """Run another loop after this one has ended; `build` makes it, or returns None: the model is removed.

        Returns:
            Whether this thread does so; False: the model was removed before.
        """
        with self._lock:
            if self._is_removed:
                return False
            self._next = build
            self._end_loop()
        return True

    def stop(self) -> None:
        """End the loop, and begin no other one."""
        with self._lock:
            self._is_stopping = True
            self._end_loop()

    @property
    def is_running(self) -> bool:
        """Whether the loop runs."""
        return self.built is not None and self.built.supervisor.is_running and not self._fault

    @property
    def fault(self) -> str:
        """Why the loop cannot be built, for people; empty if it can."""
        return self._fault

    def is_moving(self) -> bool:
        """Whether the step, or the attempt to build a loop, in progress is within its time limit."""
        due = self._due
        if due is not None:
            return self._clock.monotonic() <= due
        return self.built is None or self.built.model.loop.is_moving()

    def report_failure(self, error: Exception, pause: float) -> None:
        """Count an attempt to build a loop that has failed, and show why; `pause` seconds before the next one."""
        self._fault, self._failures = _describe(error), self._failures + 1
        if repr(error) != self._logged:
            self._log.error("loop_crashed", model=self._name, exc_info=error, retry_in_seconds=pause)
            self._logged = repr(error)
        detail = f"{type(error).__name__}, the start failed {self._failures} times in a row"
        self._observer.report_error(self._name, "loop_crashed", detail)

    def _end_loop(self) -> None:
        self._again.set()
        if self.built is not None:
            self.built.stop()

    def _run(self) -> None:
        while True:
            if self.built is not None:
                self.built.supervisor.run()
            self._again.wait()  # the loop ends by itself only if the journal cannot be trusted: nothing goes on
            build = self._take_next()
            if build is None or not self._build(build):
                return

    def _take_next(self) -> Callable[[], BuiltLoop | None] | None:
        """What makes the loop of the last change; None if there was none, or the process stops."""
        with self._lock:
            self._again.clear()
            build, self._next = self._next, None
            return None if self._is_stopping else build

    def _build(self, build: Callable[[], BuiltLoop | None]) -> bool:
        """Build the next loop; returns whether there is one."""
        if self.built is not None:
            self.built.model.close()
        while True:
            self._due = self._clock.monotonic() + GRACE_SECONDS
            try:
                built = build()
            except Exception as error:  # noqa: BLE001  the thread must live: another change may repair it
                self._pause(error)
            else:
                if self._accept(built):
                    return built is not None
                if built is not None:
                    built.model.close()
            with self._lock:
                if self._is_stopping:
                    return False
            build = self._take_next() or build

    def _accept(self, built: BuiltLoop | None) -> bool:
        """Continue with a loop, or end without one; False if another change, or a stop, came while it was built."""
        with self._lock:
            if self._next is not None or self._is_stopping:
                return False
            self._fault, self._failures, self._logged = "", 0, ""
            if built is None:
                self._is_removed = True
            else:
                self.built = built
            self._due = None
            self._on_next(built)
            return True

    def _pause(self, error: Exception) -> None:
        """Show why a loop was not built, and wait until the next attempt, which a change or a stop makes the next."""
        self._due = math.inf
        if isinstance(error, JournalUnusable):
            self._fault = _describe(error)
            self._on_unusable(error)
            self._again.wait()
        else:
            self.report_failure(error, REBUILD_SECONDS)
            self._again.wait(REBUILD_SECONDS)


def _describe(error: Exception) -> str:
    kind = type(error).__name__
    return (
        f"the update loop cannot be started ({kind}; see loop_crashed in the log) and is tried again every "
        f"{REBUILD_SECONDS:g} s; the server keeps serving"
    )
