"""The models that this updater keeps up to date: each with a loop in a thread of its own.

A model whose settings change ends its loop as an updater does that stops in good order, and a loop with the new
settings continues from the journal, in the same thread: two loops of one model never run side by side.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from common import logs
from common.settings import ModelSettings
from common.settings_change import ReloadPlan
from updater.compose import ModelUpdater, UpdaterDependencies, build_model
from updater.core.ports import JournalUnusable
from updater.core.record import ModelRecord
from updater.service.servicer import ModelHandle
from updater.settings import UpdaterSettings
from updater.supervise import LoopSupervisor

REBUILD_SECONDS = 5.0  # between two attempts to build the loop of a model whose settings have changed


def settings_of_models(settings: UpdaterSettings) -> dict[str, object]:
    """By name, the settings on which the loop of each model depends, beside those that all share."""
    sections = settings.updater.models
    return {model.name: (model, sections[model.name]) for model in settings.models if model.name in sections}


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
        self, name: str, built: BuiltLoop, on_next: "Callable[[BuiltLoop | None], None]", log: logs.Logger
    ) -> None:
        self.built = built
        self._on_next = on_next
        self._log = log
        self._lock = threading.Lock()
        self._next: Callable[[], BuiltLoop | None] | None = None
        self._is_stopping = False
        self._again = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"model-{name}", daemon=True)

    def change(self, build: Callable[[], BuiltLoop | None]) -> None:
        """Run another loop after this one has ended; `build` makes it, or returns None: the model is removed."""
        with self._lock:
            self._next = build
        self._again.set()
        self.built.stop()

    def stop(self) -> None:
        """End the loop, and begin no other one."""
        with self._lock:
            self._is_stopping = True
        self._again.set()
        self.built.stop()

    def _run(self) -> None:
        while True:
            self.built.supervisor.run()
            self._again.wait()  # the loop ends by itself only if the journal cannot be trusted: nothing goes on
            with self._lock:
                self._again.clear()
                build, self._next = self._next, None
                if self._is_stopping or build is None:
                    return
            if not self._build(build):
                return

    def _build(self, build: Callable[[], BuiltLoop | None]) -> bool:
        """Build the next loop; returns whether there is one."""
        self.built.model.close()
        while not self._is_stopping:
            try:
                built = build()
            except Exception as error:  # noqa: BLE001  the thread must live: another change may repair it
                self._log.error("loop_crashed", exc_info=error, retry_in_seconds=REBUILD_SECONDS)
                self._again.wait(REBUILD_SECONDS)
                continue
            if built is not None:
                self.built = built
            self._on_next(built)
            with self._lock:
                is_outdated = self._next is not None or self._is_stopping
            if built is not None and is_outdated:  # another change came while it was built
                built.stop()
            return built is not None
        return False


class UpdatedModels:
    """Starts, changes and ends the loops. `start` and `apply` from one thread at a time; the rest from any."""

    def __init__(
        self, log: logs.Logger, on_unusable: Callable[[JournalUnusable], None], forget: Callable[[str], None]
    ) -> None:
        """Start nothing.

        Args:
            log: of the process.
            on_unusable: called when the journal cannot be trusted.
            forget: called with the name of a removed model; removes it from the metrics.
        """
        self.handles: dict[str, ModelHandle] = {}  # of the loops that take commands
        self._log, self._on_unusable, self._forget = log, on_unusable, forget
        self._lock = threading.Lock()  # of the two below, which are replaced and never changed
        self._threads: Mapping[str, ModelThread] = {}
        self._removed: Mapping[str, ModelRecord] = {}  # last records: their bundles are not garbage

    def build(self, dependencies: UpdaterDependencies) -> None:
        """Build the loops of all configured models.

        Raises:
            JournalUnusable: a record cannot be read.
        """
        for name, model in _configured(dependencies.settings).items():
            self._add(name, self._make(dependencies, model))

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
        models = _configured(dependencies.settings)
        new = self._make_new(dependencies, [models[name] for name in (*plan.changed, *plan.added)])
        accept()
        for name in plan.removed:
            self._change(name, lambda: None)
        for name in (*plan.changed, *plan.added):
            if name in new:
                self._add(name, new[name])
                self._threads[name].thread.start()
            else:
                self._change(name, partial(self._make, dependencies, models[name]))

    def records(self) -> dict[str, ModelRecord]:
        """The latest record of each model, also of those that were removed."""
        running = {name: one.built.model.loop.publisher.snapshot.record for name, one in self._threads.items()}
        return {**self._removed, **running}

    def running(self) -> dict[str, bool]:
        """For each model whether its loop runs."""
        return {name: one.built.supervisor.is_running for name, one in self._threads.items()}

    def is_moving(self) -> bool:
        """Whether each step in progress is within its time limit."""
        return all(one.built.model.loop.is_moving() for one in self._threads.values())

    def request_stop(self) -> None:
        """End all loops."""
        for one in self._threads.values():
            one.stop()

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """The threads that were started."""
        return [one.thread for one in self._threads.values() if one.thread.ident is not None]

    def close(self) -> None:
        """Close the connections to the server."""
        for one in self._threads.values():
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

    def _change(self, name: str, build: Callable[[], BuiltLoop | None]) -> None:
        self.handles.pop(name, None)
        self._threads[name].change(build)

    def _add(self, name: str, built: BuiltLoop) -> None:
        one = ModelThread(name, built, lambda built: self._on_next(name, built), self._log)
        with self._lock:
            self._threads = {**self._threads, name: one}
            self._removed = {other: record for other, record in self._removed.items() if other != name}
        self.handles[name] = _handle(built.model)

    def _on_next(self, name: str, built: BuiltLoop | None) -> None:
        """A model's loop was built by other settings, or it was removed."""
        if built is not None:
            self.handles[name] = _handle(built.model)
            self._log.info("loop_changed", model=name)
            return
        with self._lock:
            record = self._threads[name].built.model.loop.publisher.snapshot.record
            self._removed = {**self._removed, name: record}
            self._threads = {other: one for other, one in self._threads.items() if other != name}
        self._forget(name)
        self._log.info("loop_removed", model=name)

    def _make(self, dependencies: UpdaterDependencies, model: ModelSettings) -> BuiltLoop:
        stopping = threading.Event()
        own = replace(dependencies, stopping=stopping)
        updater = build_model(own, model, self.records)
        shared = (dependencies.clock, dependencies.observer, self._log, stopping, self._on_unusable, updater.wake)
        return BuiltLoop(updater, LoopSupervisor(model.name, updater.loop, *shared), stopping)


def _configured(settings: UpdaterSettings) -> Mapping[str, ModelSettings]:
    return {model.name: model for model in settings.models if model.name in settings.updater.models}


def _handle(model: ModelUpdater) -> ModelHandle:
    return ModelHandle(model.loop.publisher, model.commands, model.progress)
