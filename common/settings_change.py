"""What changes when a running process takes over another version of its settings. Pure.

A setting says by a mark among its annotations what a change of it needs: `Annotated[int, Change.AT_ONCE, Field(…)]`.
The mark of a section counts for the settings in it, unless they have their own; without a mark a change needs a
restart.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.settings import Change, SettingsFile

ABSENT = "none"  # the value of a table that is not there


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting with another value."""

    key: str  # for example "server.port", "models.addresses"
    before: str  # as in the file
    after: str
    needs: Change


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The changes with which a process takes over new settings."""

    changes: tuple[SettingChange, ...]
    added: tuple[str, ...] = ()  # models
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def restarts(self) -> tuple[str, ...]:
        """The keys that need a restart; with any of them, nothing may be taken over."""
        return tuple(one.key for one in self.changes if one.needs is Change.RESTART)


def plan_reload(
    old: SettingsFile, new: SettingsFile, models: tuple[Mapping[str, object], Mapping[str, object]] | None = None
) -> ReloadPlan:
    """Plan the change from one version of a process's settings to another.

    Args:
        old: settings in use.
        new: settings of the file; they must have no mistakes.
        models: by name, the settings of each model that the process has by `old` and by `new`; by default those of
            `[[models]]`.
    """
    changes = tuple(_compare(old, new, "", Change.RESTART))
    before, after = models or tuple({one.name: one for one in settings.models} for settings in (old, new))
    kept = [name for name in after if name in before]
    concerns_all = any(one.needs is Change.MODELS and not _is_of_one(one.key) for one in changes)
    return ReloadPlan(
        changes,
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in kept if concerns_all or before[name] != after[name]),
    )


def _is_of_one(key: str) -> bool:
    """Whether a setting concerns the one model that it names."""
    return key.startswith(("models.", "updater.models."))


def _compare(old: BaseModel, new: BaseModel, prefix: str, inherited: Change) -> Iterator[SettingChange]:
    for name, field in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if field.annotation is Any or before == after:  # Any: a section of another process
            continue
        needs = next((mark for mark in field.metadata if isinstance(mark, Change)), inherited)
        yield from _compare_values(before, after, prefix + name, needs)


def _compare_values(before: object, after: object, key: str, needs: Change) -> Iterator[SettingChange]:
    if isinstance(before, BaseModel) and isinstance(after, BaseModel):
        yield from _compare(before, after, f"{key}.", needs)
        return
    old_tables, new_tables = _tables(before), _tables(after)
    if needs is Change.RESTART or (not old_tables and not new_tables):
        yield SettingChange(key, show_value(before), show_value(after), needs)
        return
    for name in [*old_tables, *(name for name in new_tables if name not in old_tables)]:
        old, new = old_tables.get(name), new_tables.get(name)
        if old is None or new is None:
            yield SettingChange(f"{key}.{name}", show_value(old), show_value(new), needs)
        elif old != new:
            yield from _compare(old, new, f"{key}.{name}.", needs)
    if not isinstance(before, Mapping) and set(old_tables) == set(new_tables) and list(old_tables) != list(new_tables):
        yield SettingChange(key, ", ".join(old_tables), ", ".join(new_tables), Change.AT_ONCE)  # their order


def _tables(value: object) -> dict[str, BaseModel]:
    """The tables in a list or a table of tables, by name; empty for any other value."""
    if isinstance(value, Mapping):
        return {name: one for name, one in value.items() if isinstance(one, BaseModel)}
    if isinstance(value, tuple):
        return {one.name: one for one in value if isinstance(one, BaseModel) and hasattr(one, "name")}
    return {}


def show_value(value: object) -> str:
    """A value as in the file; of tables in a list only how many there are, for they may hold addresses with secrets."""
    if value is None:
        return ABSENT
    if isinstance(value, BaseModel):
        given = {name: getattr(value, name) for name in type(value).model_fields if name in value.model_fields_set}
        inner = ", ".join(f"{name} = {show_value(one)}" for name, one in given.items() if name != "name")
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
        return f"{len(value)} tables"
    if isinstance(value, tuple):
        return f"[{', '.join(show_value(one) for one in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {show_value(one)}' for name, one in value.items())} }}" if value else "{}"
    if isinstance(value, Enum):
        value = value.value
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
