"""The models that this updater keeps up to date: each with a loop in a thread of its own."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from common import logs
from common.clock import Clock
from common.settings import ModelSettings
from common.settings_change import ReloadPlan
from updater.compose import ModelUpdater, UpdaterDependencies, build_model
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord
from updater.metrics import Observer
from updater.model_thread import BuiltLoop, ModelThread
from updater.service.servicer import ModelHandle
from updater.settings import UpdaterSettings
from updater.supervise import LoopSupervisor


def settings_of_models(settings: UpdaterSettings) -> dict[str, object]:
    """By name, the settings on which the loop of each model depends, beside those that all share."""
    sections = settings.updater.models
    return {model.name: (model, sections[model.name]) for model in settings.models if model.name in sections}


class UpdatedModels:
    """Starts, changes and ends the loops. `start` and `apply` from one thread at a time; the rest from any."""

    def __init__(
        self,
        log: logs.Logger,
        clock: Clock,
        observer: Observer,
        on_unusable: Callable[[JournalUnusable], None],
        forget: Callable[[str], None],
    ) -> None:
        """Start nothing.

        Args:
            log: of the process.
            clock: of the process.
            observer: gets the attempts to build a loop that have failed.
            on_unusable: called when the journal cannot be trusted.
            forget: called with the name of a removed model; removes it from the metrics.
        """
        self._log, self._clock, self._observer = log, clock, observer
        self._on_unusable, self._forget = on_unusable, forget
        self._lock = threading.Lock()  # of the three below; the mappings are replaced and never changed
        self._is_stopping = False
        self._threads: Mapping[str, ModelThread] = {}
        # Last records: their bundles are not garbage. None if there was never a loop: the journal has it.
        self._removed: Mapping[str, ModelRecord | None] = {}
        self._load: Callable[[str], ModelRecord | None] = lambda _name: None  # from the journal

    def build(self, dependencies: UpdaterDependencies) -> None:
        """Give each configured model a thread, which builds its loop: one that hangs or fails concerns no other."""
        self._load = dependencies.journal.load
        for name, model in _configured(dependencies.settings).items():
            self._add(name, None).change(partial(self._make, dependencies, model))

    def start(self) -> None:
        """Start the threads."""
        for one in self._threads.values():
            one.thread.start()

    def apply(self, dependencies: UpdaterDependencies, plan: ReloadPlan, accept: Callable[[], None]) -> None:
        """Take over new settings, or raise and change nothing.

        A loop in the middle of a step that cannot be interrupted ends after it.

        Args:
            dependencies: with the new settings.
            plan: which models are added, removed or changed.
            accept: called once nothing can fail any more, before the first loop changes.

        Raises:
            JournalUnusable: the record of an added model cannot be read.
            Exception: the loop of an added model cannot be built.
        """
        models, threads = _configured(dependencies.settings), self._threads
        new = self._make_new(dependencies, [models[name] for name in (*plan.changed, *plan.added)])
        accept()
        for name in plan.removed:
            if name in threads:
                threads[name].change(lambda: None)
        for name in (*plan.changed, *plan.added):
            if name in new:
                self._add(name, new[name]).thread.start()
            else:
                self._change(name, threads[name], partial(self._make, dependencies, models[name]))

    def records(self) -> dict[str, ModelRecord]:
        """The latest record of each model, also of those that were removed.

        Raises:
            OSError, JournalUnusable: the record of a model whose loop was never built cannot be read.
        """
        with self._lock:  # a model moves between the two
            threads, removed = self._threads, self._removed
        known = {**removed, **{name: _last_record(one.built) for name, one in threads.items()}}
        return {name: record or self._load(name) or ModelRecord(name) for name, record in known.items()}

    def running(self) -> dict[str, bool]:
        """For each model whether its loop runs."""
        return {name: one.is_running for name, one in self._threads.items()}

    def handle_of(self, name: str) -> ModelHandle | None:
        """Reads the state of a model's loop and sends it commands; None while there is no loop."""
        one = self._threads.get(name)
        built = None if one is None else one.current
        return None if built is None else _handle(built.model)

    def fault_of(self, name: str) -> str:
        """Why a model has no loop, for people; empty if it has one, or will in a moment."""
        one = self._threads.get(name)
        return "" if one is None else one.fault

    def is_moving(self) -> bool:
        """Whether each step in progress is within its time limit."""
        return all(one.is_moving() for one in self._threads.values())

    def request_stop(self) -> None:
        """End all loops, and those that a reload still adds."""
        with self._lock:
            self._is_stopping, threads = True, self._threads
        for one in threads.values():
            one.stop()

    def await_end(self, seconds: float) -> bool:
        """Wait for the loops to end, after `request_stop`; returns whether all have within the time."""
        threads, ends = self.threads, self._clock.monotonic() + seconds
        while any(thread.is_alive() for thread in threads) and self._clock.monotonic() < ends:
            _kill_children()  # an interrupted conversion is repeated after the restart
            for thread in threads:
                thread.join(0.2)
        return not any(thread.is_alive() for thread in threads)

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """The threads that were started."""
        return [one.thread for one in self._threads.values() if one.thread.ident is not None]

    def close(self) -> None:
        """Close the connections to the server."""
        for one in self._threads.values():
            if one.built is not None:
                one.built.model.close()

    def _make_new(self, dependencies: UpdaterDependencies, models: Sequence[ModelSettings]) -> Mapping[str, BuiltLoop]:
        """The loops of those models that have no thread; all of them, or none."""
        new: dict[str, BuiltLoop] = {}
        try:
            for model in models:
                thread = self._threads.get(model.name)
                if thread is None or not thread.thread.is_alive():
                    new[model.name] = self._make(dependencies, model)
        except BaseException:
            for built in new.values():
                built.model.close()
            raise
        return new

    def _change(self, name: str, one: ModelThread, build: Callable[[], BuiltLoop]) -> None:
        """Continue a model with another loop, in its thread or, if its removal has just ended that, in a new one."""
        if not one.change(build):
            new = self._add(name, None)
            new.change(build)
            new.thread.start()

    def _add(self, name: str, built: BuiltLoop | None) -> ModelThread:
        shared = (self._clock, self._observer, self._on_unusable)
        one = ModelThread(name, built, partial(self._on_next, name), *shared)
        with self._lock:
            self._threads = {**self._threads, name: one}
            self._removed = {other: record for other, record in self._removed.items() if other != name}
            is_stopping = self._is_stopping
        if is_stopping:
            one.stop()
        return one

    def _on_next(self, name: str, built: BuiltLoop | None) -> None:
        """A model's first loop was built, or one by other settings, or the model was removed."""
        if built is not None:
            self._log.info("loop_started" if self._threads[name].built is None else "loop_changed", model=name)
            return
        with self._lock:
            self._removed = {**self._removed, name: _last_record(self._threads[name].built)}
            self._threads = {other: one for other, one in self._threads.items() if other != name}
        self._forget(name)
        self._log.info("loop_removed", model=name)

    def _make(self, dependencies: UpdaterDependencies, model: ModelSettings) -> BuiltLoop:
        stopping = threading.Event()
        own = replace(dependencies, stopping=stopping)
        updater = build_model(own, model, self.records)
        shared = (dependencies.clock, dependencies.observer, stopping, self._on_unusable, updater.wake)
        return BuiltLoop(updater, LoopSupervisor(model.name, updater.loop, *shared), stopping)


def _configured(settings: UpdaterSettings) -> Mapping[str, ModelSettings]:
    return {model.name: model for model in settings.models if model.name in settings.updater.models}


def _last_record(built: BuiltLoop | None) -> ModelRecord | None:
    return None if built is None else built.model.loop.publisher.snapshot.record


def _kill_children() -> None:
    """Kill all child processes; the code that waits for one sees it end."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError):
            for pid in (task / "children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def _handle(model: ModelUpdater) -> ModelHandle:
    return ModelHandle(model.loop.publisher, model.commands, model.progress)
