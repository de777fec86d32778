"""Takes over a changed settings file in a running process: read, check, plan; whole or not at all.

Reading decides nothing and changes nothing: `read` returns what would happen. The process then performs the plan, or
records that the file was refused; the settings that it had stay in use.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from common.clock import Clock
from common.durable import read_bounded
from common.metric_catalog import MetricSpec, Reading, gauge
from common.reload import ReloadLog
from common.settings import Change, SettingsFile, SettingsInvalid, format_mistake, settings_path
from common.settings_change import ReloadPlan, SettingChange, plan_reload
from common.toml_text import MAX_FILE_BYTES

SETTINGS_SUCCESSFUL = gauge(
    "hotslot_settings_reload_successful",
    "1 while the settings file is in use as it was last read, 0 while it was refused: those before are in use.",
    use="Alert on 0: the log has settings_refused with the reason, `hotslot status` too.",
)
SETTINGS_LOADED_AT = gauge(
    "hotslot_settings_loaded_timestamp_seconds",
    "When the settings in use were read, seconds since 1970.",
    use="Whether a change has reached this process.",
)
SETTINGS_METRICS: tuple[MetricSpec, ...] = (SETTINGS_SUCCESSFUL, SETTINGS_LOADED_AT)

S = TypeVar("S", bound=SettingsFile)
ModelsOf = Callable[[S], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class SettingsState:
    """The settings in use, and what became of the last file that was read."""

    digest: str  # SHA-256 of the file as it was read, as of sha256sum
    loaded_at: datetime
    failure: str = ""  # why the last file was refused; empty if it is in use
    failed_at: datetime | None = None
    restarts: tuple[str, ...] = ()  # keys of the refused file that need a restart; empty if it has mistakes


@dataclass(frozen=True, slots=True)
class ReadSettings(Generic[S]):
    """A settings file that was read, and what it would change."""

    path: Path
    digest: str
    settings: S | None  # None if it has mistakes; then the plan is empty
    plan: ReloadPlan
    mistakes: tuple[str, ...] = ()

    @property
    def refusal(self) -> str:
        """Why nothing of it may be taken over; empty if it may."""
        if self.mistakes:
            return "; ".join(self.mistakes)
        keys = self.plan.restarts
        return describe_restarts(keys) if keys else ""

    def as_fields(self, refusal: str, *, is_applied: bool) -> dict[str, Any]:
        """The fields of the message SettingsReload."""
        plan = self.plan
        changes = [
            {"key": one.key, "before": one.before, "after": one.after, "needs": one.needs.value} for one in plan.changes
        ]
        models = {"added": plan.added, "removed": plan.removed, "changed": plan.changed}
        file = {"path": str(self.path), "digest": self.digest}
        return {**file, **models, "changes": changes, "refusal": refusal, "applied": is_applied}


class SettingsReloader(Generic[S]):
    """The settings of one process, with the file that they come from. `read` may run on any thread."""

    def __init__(
        self, settings: S, load: Callable[[], S], log: ReloadLog, clock: Clock, models_of: ModelsOf[S] | None = None
    ) -> None:
        """Read the file's digest.

        Args:
            settings: in use.
            load: reads and checks the file.
                Raises SettingsInvalid.
            log: gets a line for each reload.
            clock: for the time of each.
            models_of: returns the settings of each model that the process has; by default those of `[[models]]`.
        """
        self.settings = settings
        self._load, self._log, self._clock, self._models_of = load, log, clock, models_of
        self.state = SettingsState(read_digest(settings_path()), clock.now())

    def read(self) -> ReadSettings[S]:
        """Read and check the file, and plan the change; changes nothing."""
        path = settings_path()
        digest = read_digest(path)
        try:
            settings = self._load()
        except SettingsInvalid as error:
            return ReadSettings(path, digest, None, ReloadPlan(()), tuple(map(format_mistake, error.mistakes)))
        except OSError as error:  # of a file or folder that the settings name
            mistake = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}; try again"
            return ReadSettings(path, digest, None, ReloadPlan(()), (mistake,))
        if read_digest(path) != digest:
            mistake = "the file was changed while it was read; try again"
            return ReadSettings(path, digest, None, ReloadPlan(()), (mistake,))
        models = None if self._models_of is None else (self._models_of(self.settings), self._models_of(settings))
        return ReadSettings(path, digest, settings, plan_reload(self.settings, settings, models))

    def accept(self, found: ReadSettings[S]) -> None:
        """Record that the process has taken over what was read."""
        if found.settings is None:
            raise RuntimeError("settings with mistakes cannot be accepted")
        self.settings = found.settings
        self.state = SettingsState(found.digest, self._clock.now())
        plan = found.plan
        models = {"added": list(plan.added), "removed": list(plan.removed), "changed": list(plan.changed)}
        self._log.info(
            "settings_loaded", digest=found.digest, changes=list(map(describe_change, plan.changes)), **models
        )

    def refuse(self, found: ReadSettings[S], detail: str) -> None:
        """Record that the file was not taken over."""
        state = self.state
        restarts = () if found.mistakes else found.plan.restarts
        self.state = SettingsState(state.digest, state.loaded_at, detail, self._clock.now(), restarts)
        self._log.error("settings_refused", detail=detail, digest=found.digest, file=str(found.path))

    def read_metrics(self) -> list[Reading]:
        """SETTINGS_METRICS now."""
        state = self.state
        values = {SETTINGS_SUCCESSFUL: float(not state.failure), SETTINGS_LOADED_AT: state.loaded_at.timestamp()}
        return [Reading(metric, {(): value}) for metric, value in values.items()]


def describe_restarts(keys: Iterable[str]) -> str:
    """Why a file that changes these keys is refused."""
    return f"needs a restart: {', '.join(keys)}"


def describe_change(change: SettingChange) -> str:
    """A change as one line of text."""
    needs = "" if change.needs is Change.AT_ONCE else f" ({change.needs.value})"
    return f"{change.key}: {change.before} → {change.after}{needs}"


def read_digest(path: Path) -> str:
    """SHA-256 of the settings file, 64 hexadecimal digits; empty if it cannot be read."""
    try:
        return hashlib.sha256(read_bounded(path, MAX_FILE_BYTES)).hexdigest()
    except (OSError, ValueError):
        return ""
