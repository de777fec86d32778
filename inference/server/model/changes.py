"""Adds, removes and replaces models while the server serves, without a lost call.

A removed model is not found any more; it answers what it has accepted, and its runners end. A changed model goes on
serving while its replacement loads the same bundle by the new settings; when that answers, it takes the calls, and
the changed model leaves as a removed one does. A replacement that cannot load is given up; the model stays as it is.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from common.failure_log import FailureLog
from common.logs import Logger
from inference.server.aside import start_aside
from inference.server.model.commands import BOOT_PAUSE_SECONDS, BootBundle, SlotCommands
from inference.server.model.manager import ModelManager
from inference.server.model.models import Models
from inference.server.scheduling.admission import Capacity

STOP_SECONDS = 5.0  # for the runners to end, after the last call
MAX_FAILURES = 2  # ends of a replacement's process before it is given up
MAX_BOOT_SECONDS = 60.0  # in which a replacement's bundle cannot be read before it is given up
BOOT_THREAD = "boot"


@dataclass(slots=True)
class _Leaving:
    """A model that answers what it has accepted, and then ends."""

    manager: ModelManager
    stop: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its processes have ended, too: the end of each is still reported, with the labels of its slot."""
        processes = [slot.process for slot in self.manager.machine.slots.values()]
        return self.stop is not None and self.stop.done() and not any(processes)


class ModelChanges:
    """Changes the models of a running server. Loop thread only; `tick` must be called about every 50 ms."""

    def __init__(self, models: Models, forget: Callable[[str, bool], None], log: Logger) -> None:
        """Change nothing yet.

        Args:
            models: of the server.
            forget: called with the name of a model whose processes have ended, and whether another one of this name
                is served; removes them from the metrics.
            log: of the process.
        """
        self._models, self._forget, self._log = models, forget, log
        self._tick_failures: dict[str, FailureLog] = {}  # by model
        self._replacements: dict[str, ModelManager] = {}
        self._leaving: list[_Leaving] = []
        self._readings: dict[ModelManager, Future[BootBundle]] = {}  # what is looked for again
        self.failures: dict[str, str] = {}  # by model: why its last replacement was given up

    @property
    def loading(self) -> tuple[str, ...]:
        """The models whose replacements are being loaded."""
        return tuple(self._replacements)

    def boot(self, manager: ModelManager, digest: str = "") -> None:
        """Start a model's processes and load a bundle: by default what is committed."""
        reason = SlotCommands(manager).boot(digest)
        if reason:
            self._log.warning("boot_without_model", model=manager.options.model, detail=reason)

    def apply(
        self, order: tuple[str, ...], added: Mapping[str, ModelManager], changed: Mapping[str, ModelManager]
    ) -> None:
        """Serve these models from now on.

        Args:
            order: the names of all models.
            added: new models by name.
            changed: replacements of models that are served, by name.
        """
        served = {manager.options.model: manager for manager in self._models.all()}
        for name in [name for name in self._replacements if name in changed or name not in order]:
            self._leave(self._replacements.pop(name))
        self._models.serve([added[name] if name in added else served[name] for name in order])
        for name, manager in served.items():
            if name not in order:
                self._leave(manager)
        for manager in added.values():
            self.boot(manager)
        for name, manager in changed.items():
            self.failures.pop(name, None)
            self._begin_to_replace(served[name], manager)
        self.failures = {name: text for name, text in self.failures.items() if name in order}

    def set_capacity(self, capacity: Capacity) -> None:
        """Limit what each model has accepted and not answered."""
        for manager in (*self._models.all(), *self._replacements.values()):
            manager.requests.intake.admission.capacity = capacity

    def tick(self) -> None:
        """Check all models, let replacements take over, and end those that have answered everything."""
        for manager in (*self._models.all(), *self._replacements.values(), *(one.manager for one in self._leaving)):
            name = manager.options.model
            if name not in self._tick_failures:
                self._tick_failures[name] = FailureLog(f"model {name}", self._log, manager.options.clock)
            with self._tick_failures[name]:  # the other models are checked all the same
                manager.tick()
                self._boot_again_if_due(manager)
        for name, replacement in list(self._replacements.items()):
            self._try_to_replace(name, replacement)
        for one in self._leaving:
            if one.stop is None and not one.manager.requests.waiting:
                one.stop = asyncio.get_running_loop().create_task(SlotCommands(one.manager).stop(STOP_SECONDS))
        for one in [one for one in self._leaving if one.has_ended]:
            self._leaving.remove(one)
            self._end(one.manager)

    async def stop(self, seconds: float) -> None:
        """End the processes of all models; kill those that have not ended after `seconds`."""
        others = [*self._replacements.values(), *(one.manager for one in self._leaving)]
        managers = (*self._models.all(), *others)
        for manager in managers:
            self._look_no_more(manager)
        await asyncio.gather(*(SlotCommands(one).stop(seconds) for one in managers))

    def _boot_again_if_due(self, manager: ModelManager) -> None:
        """Look again for what a passing fault has kept a model from; the log has each reason once."""
        reading, now = self._readings.get(manager), manager.options.clock.monotonic()
        if reading is None:
            if manager.boot_again_at is not None and now >= manager.boot_again_at:
                manager.boot_again_at = now + BOOT_PAUSE_SECONDS  # also if this attempt ends as nobody foresaw
                digest = active_digest(self._models.get(manager.options.model))  # a replacement loads the same
                self._readings[manager] = start_aside(partial(SlotCommands(manager).read_for_boot, digest), BOOT_THREAD)
        elif reading.done():
            del self._readings[manager]
            if manager.boot_again_at is not None:  # no command has loaded something meanwhile
                before, reason = manager.boot_failure, SlotCommands(manager).boot_again(reading.result())
                if reason not in ("", before):
                    self._log.warning("boot_without_model", model=manager.options.model, detail=reason)

    def _look_no_more(self, manager: ModelManager) -> None:
        manager.boot_again_at = None
        self._readings.pop(manager, None)

    def _try_to_replace(self, name: str, replacement: ModelManager) -> None:
        """Let a replacement take over when it answers, or give it up."""
        served = self._models.get(name)
        failure = describe_failure(served, replacement)
        if failure:
            del self._replacements[name]
            self._give_up(name, served, replacement, failure)
        elif may_take_over(served, replacement):
            del self._replacements[name]
            if active_digest(served) not in ("", active_digest(replacement)):  # another revision was committed
                self._begin_to_replace(served, ModelManager(replacement.options))
                self._leave(replacement)
                return
            self._models.serve([replacement if one is served else one for one in self._models.all()])
            self._leave(served)
            self._log.info("model_replaced", model=name)

    def _begin_to_replace(self, served: ModelManager, replacement: ModelManager) -> None:
        self._replacements[served.options.model] = replacement
        self.boot(replacement, active_digest(served))

    def _give_up(self, name: str, served: ModelManager, replacement: ModelManager, failure: str) -> None:
        self.failures[name] = failure
        file, row = served.options.cpu_fallback_file, served.pair.cpu_fallback
        if row is None:
            file.remove(name)  # the replacement's
        else:
            file.put(row)
        self._leave(replacement)
        self._log.error("model_not_replaced", model=name, detail=failure)

    def _leave(self, manager: ModelManager) -> None:
        self._look_no_more(manager)
        manager.requests.intake.turns.close()
        self._leaving.append(_Leaving(manager))
        self._models.leaving = tuple(one.manager for one in self._leaving)
        self._log.info("model_leaving", model=manager.options.model, unanswered=manager.requests.waiting)

    def _end(self, manager: ModelManager) -> None:
        """Forget a model whose processes have ended; the slots of its replacement are shown instead of its own."""
        name = manager.options.model
        self._models.leaving = tuple(one.manager for one in self._leaving)
        served = [other for other in self._models.all() if other.options.model == name]
        self._forget(name, bool(served))
        for other in served:
            other.machine.report_slots()
        self._log.info("model_left", model=name)


def describe_failure(served: ModelManager, replacement: ModelManager) -> str:
    """Why a replacement cannot take over; empty if it may still. Without a model that answers there is no choice."""
    active = replacement.pair.active_slot
    if active is None:  # a model that is loaded again answers soon: it is kept too
        is_kept = served.pair.active_slot is not None and not _is_tried_again(replacement)
        return replacement.boot_failure if is_kept else ""
    if served.pair.answering_slot() is None:
        return ""
    if active.deaths_in_row >= MAX_FAILURES:
        return active.last_failure or "its process ends again and again"
    row = replacement.pair.cpu_fallback
    if row is not None and served.pair.cpu_fallback is None:
        return f"{row.device} has no memory for it beside the model that serves ({row.reason})"
    return ""


def may_take_over(served: ModelManager, replacement: ModelManager) -> bool:
    """Whether a replacement is to take the calls now. Not during a trial: its verdict comes first."""
    if served.pair.trial is not None:
        return False
    if replacement.pair.active_slot is None:  # it has nothing to answer with
        return served.pair.active_slot is None and served.pair.gap is None  # a gap ends with what it has promised
    return replacement.is_ready or served.pair.answering_slot() is None


def active_digest(manager: ModelManager) -> str:
    """Digest of the active slot's bundle; empty without one."""
    active = manager.pair.active_slot
    return "" if active is None else active.digest


def _is_tried_again(replacement: ModelManager) -> bool:
    """Whether its bundle may still be read: what keeps it from that often passes within seconds."""
    if replacement.boot_again_at is None or replacement.boot_failed_at is None:
        return False
    return replacement.options.clock.monotonic() < replacement.boot_failed_at + MAX_BOOT_SECONDS
