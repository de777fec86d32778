"""The thread of one model: runs its update loop, and then the loop with other settings.

A model whose settings change ends its loop as an updater does that stops in good order, and a loop with the new
settings continues from the journal, in the same thread: two loops of one model never run side by side.

Each loop is built in that thread too, the first one as well. What it needs may not be there, or may not answer: then
this model alone has no loop, the heartbeat goes on, and the status says why.
"""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from common.clock import Clock
from updater.compose import ModelUpdater
from updater.core.ports import JournalUnusable
from updater.metrics import Observer
from updater.supervise import LoopSupervisor, restart_pause

SLOW_SECONDS = 5.0  # an attempt to build a loop that takes longer is shown


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
        clock: Clock,
        observer: Observer,
        on_unusable: Callable[[JournalUnusable], None],
    ) -> None:
        """Start nothing.

        Args:
            name: of the model.
            built: the first loop; None: `change` says how it is built, and may do so before the thread is started.
            on_next: called with each further loop when it takes the place of `built`, with None once the model is
                removed; must not wait.
            clock: of the process.
            observer: gets the attempts to build a loop that have failed.
            on_unusable: called when a loop cannot be built because the journal cannot be trusted.
        """
        self.built = built
        self._name = name
        self._on_next = on_next
        self._clock, self._observer = clock, observer
        self._on_unusable = on_unusable
        self._lock = threading.Lock()  # of the four below; `built` changes under it too
        self._next: Callable[[], BuiltLoop | None] | None = None
        self._is_stopping = False
        self._is_removed = False
        # clock.monotonic() of the begin of the attempt in progress; inf before the next one; None: there is a loop
        self._began = None if built is not None else math.inf
        self._again = threading.Event()  # set while there is a next one, and from a stop on
        self._fault = ""  # of the last attempt to build a loop, for people; empty if it did not fail
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
        return self._began is None and self.built is not None and self.built.supervisor.is_running

    @property
    def current(self) -> BuiltLoop | None:
        """The loop that takes commands; None while there is none, or another one is to follow."""
        with self._lock:
            return None if self._began is not None or self._next is not None else self.built

    @property
    def fault(self) -> str:
        """Why there is no loop, for people; empty if there is one, or will be in a moment."""
        began = self._began
        if began is None:
            return ""
        seconds = self._clock.monotonic() - began
        if seconds < SLOW_SECONDS:
            return self._fault
        return (
            f"the update loop has been starting for {seconds:.0f} s: what it reads from the disk does not answer; it "
            "goes on when that does; the server keeps serving"
        )

    def is_moving(self) -> bool:
        """Whether the step in progress is within its time limit; there is none while a loop is built.

        Building has no limit: a restart does not help a disk that does not answer, and ends all models' updates.
        """
        return self._began is not None or self.built is None or self.built.model.loop.is_moving()

    def _end_loop(self) -> None:
        self._again.set()
        if self.built is not None:
            self.built.stop()

    def _run(self) -> None:
        while True:
            if self.built is not None:
                self.built.supervisor.run()
            self._again.wait()  # the loop ends by itself only if the journal cannot be trusted: nothing goes on
            build = self._take_next(None)
            if build is None or not self._build(build):
                return

    def _take_next(self, last: Callable[[], BuiltLoop | None] | None) -> Callable[[], BuiltLoop | None] | None:
        """What makes the loop of the last change, `last` if there was none since; None if the process stops."""
        with self._lock:
            if self._is_stopping:
                return None
            self._again.clear()
            build, self._next = self._next or last, None
            self._began = self._clock.monotonic()
            return build

    def _build(self, build: Callable[[], BuiltLoop | None]) -> bool:
        """Build the next loop; returns whether there is one."""
        if self.built is not None:
            self.built.model.close()
        failures = 0
        while True:
            try:
                built = build()
            except Exception as error:  # noqa: BLE001  the thread must live: another change may repair it
                failures += 1
                self._pause(error, failures)
            else:
                if self._accept(built):
                    return built is not None
                if built is not None:
                    built.model.close()
            last, next_ = build, self._take_next(build)
            if next_ is None:
                return False
            if next_ is not last:
                build, failures = next_, 0

    def _accept(self, built: BuiltLoop | None) -> bool:
        """Continue with a loop, or end without one; False if another change, or a stop, came while it was built."""
        with self._lock:
            if self._next is not None or self._is_stopping:
                return False
            self._on_next(built)
            if built is None:
                self._is_removed = True
            else:
                self.built = built
                self._fault, self._began = "", None
            return True

    def _pause(self, error: Exception, failures: int) -> None:
        """Show why a loop was not built, and wait until the next attempt; a change or a stop ends the pause."""
        self._began = math.inf
        if isinstance(error, JournalUnusable):
            self._on_unusable(error)
            self._again.wait()
            return
        pause = restart_pause(failures)
        self._fault = (
            f"the update loop cannot be started ({type(error).__name__}; see loop_crashed in the log) and is tried "
            f"again after {pause:g} s; the server keeps serving"
        )
        self._observer.report_crash(self._name, error, failures, pause)
        self._again.wait(pause)
