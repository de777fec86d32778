"""Takes over changed settings in the running server: what each part of it uses of them, and how it is replaced."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from common.clock import Clock
from common.logs import Logger
from common.settings import Mistake, SettingsInvalid, format_mistake, load_settings, read_stop_seconds
from common.settings_reload import ReadSettings, SettingsReloader
from hotslot.control.v1 import control_pb2
from inference.server import compose
from inference.server.access import Access
from inference.server.api.interceptors import Callers
from inference.server.api.predict import PredictApi
from inference.server.api.status import SettingsFacts, StatusApi
from inference.server.aside import start_aside
from inference.server.control.servicer import ControlApi
from inference.server.memory import MemoryGauge
from inference.server.model.changes import ModelChanges
from inference.server.readiness import Readiness
from inference.server.scheduling.admission import Drain
from inference.server.scheduling.held_bytes import HeldBytes
from inference.server.settings import ServerSettings


@dataclass(slots=True)
class LiveParts:
    """The parts of a running server that use settings; the handlers are added when they are made."""

    factory: compose.ModelFactory
    changes: ModelChanges
    access: Access
    callers: Callers
    held: HeldBytes
    memory: MemoryGauge
    readiness: Readiness
    predict_apis: list[PredictApi] = field(default_factory=list)
    status_api: StatusApi | None = None
    control_api: ControlApi | None = None


class LiveSettings:
    """The settings of a running server. Loop thread only."""

    def __init__(
        self,
        settings: ServerSettings,
        parts: LiveParts,
        drain: Drain,
        clock: Clock,
        log: Logger,
        load: Callable[[], ServerSettings] = lambda: load_settings(ServerSettings),
    ) -> None:
        """Keep the settings in use.

        Args:
            settings: in use.
            parts: of the server.
            drain: of the server.
            clock: of the server.
            log: of the process.
            load: reads and checks the settings file.
                Raises SettingsInvalid.
        """
        self.reloader = SettingsReloader(settings, lambda: self._check_drain(load()), log, clock)
        self._parts, self._drain, self._clock, self._log = parts, drain, clock, log
        self._lock = asyncio.Lock()
        self._reading: Future[ReadSettings[ServerSettings]] | None = None
        self.reload_requested = asyncio.Event()

    @property
    def current(self) -> ServerSettings:
        """The settings in use."""
        return self.reloader.settings

    async def reload_when_requested(self) -> None:
        """Wait for a request, and take over the file."""
        await self.reload_requested.wait()
        self.reload_requested.clear()
        await self.reload()

    async def reload(self, *, check_only: bool = False) -> control_pb2.SettingsReload:
        """Apply the settings file completely or not at all; with `check_only` return the changes and apply none."""
        async with self._lock:
            if self._reading is None or self._reading.done():  # else a broken disk still holds it
                self._reading = start_aside(self.reloader.read, "settings")
            found = await asyncio.wrap_future(self._reading)
            refusal = found.refusal
            if not refusal and self._drain.is_leaving:
                refusal = "the server is stopping"
            if not refusal and not check_only:
                refusal = self._apply(found)
            if refusal and not check_only:
                self.reloader.refuse(found, refusal)
            is_applied = not refusal and not check_only
            return control_pb2.SettingsReload(**found.as_fields(refusal, is_applied=is_applied))

    def _check_drain(self, settings: ServerSettings) -> ServerSettings:
        """Returns the settings.

        Raises:
            SettingsInvalid: the drain becomes longer than the time that supervisord, told at its start, waits for it.
        """
        stop, needed = read_stop_seconds(), settings.drain_seconds
        if stop is not None and stop <= needed and needed > self.current.drain_seconds:
            message = f"a drain may take {needed:g} now, and the stack was started with less; restart the stack"
            raise SettingsInvalid([Mistake("watchdog.stop_seconds", message, f"{stop:g}")])
        return settings

    def facts(self) -> SettingsFacts:
        """The state of the settings, for the status service."""
        changes = self._parts.changes
        kept = [f"{name} keeps its settings: {detail}" for name, detail in changes.failures.items()]
        loading = [f"{name} is being replaced, by its new settings" for name in changes.loading]
        return SettingsFacts(self.reloader.state, (*kept, *loading), has_failed=bool(kept))

    def _apply(self, found: ReadSettings[ServerSettings]) -> str:
        """Take over what was read; returns why nothing was changed, empty if all was."""
        settings, plan, parts = found.settings, found.plan, self._parts
        if settings is None:
            raise RuntimeError("settings with mistakes cannot be taken over")
        try:
            access = compose.load_access_rules(settings, self._log, self._clock)
        except SettingsInvalid as error:
            return "; ".join(map(format_mistake, error.mistakes))
        tables = {model.name: model for model in settings.models}
        make = parts.factory.make
        parts.changes.apply(
            tuple(tables),
            {name: make(settings, tables[name]) for name in plan.added},
            {name: make(settings, tables[name]) for name in plan.changed},
        )
        parts.factory.retain_runners(settings)
        parts.changes.set_capacity(compose.capacity(settings))
        parts.access.rules = access
        compose.configure_callers(parts.callers, settings, self._clock)
        parts.held.rules = compose.held_rules(settings)
        parts.memory.limit(settings.server.max_waiting_bytes)
        parts.readiness.overall = settings.health.overall
        parts.readiness.update()
        self._replace_limits(settings)
        self.reloader.accept(found)
        return ""

    def _replace_limits(self, settings: ServerSettings) -> None:
        """Give the handlers their new limits; calls that have begun keep what they have read."""
        parts, rules = self._parts, compose.predict_rules(settings)
        for api in parts.predict_apis:
            api.rules = rules
        if parts.control_api is not None:
            parts.control_api.limits = rules.inputs
        if parts.status_api is not None:
            parts.status_api.facts = replace(parts.status_api.facts, limits=compose.advertised_limits(settings))
