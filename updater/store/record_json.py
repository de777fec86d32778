"""Converts a record to a JSON object and back; defines its form on disk. Pure.

The keys are the names of the dataclasses' fields. An unknown key, a wrong type or a newer schema is refused, so that a
record that cannot be trusted stops updates instead of controlling them. An older schema is
upgraded while it is read: keys and values that were renamed since get their new names, and what was added since gets
its default. A field with the metadata `omit_default` is written only if it is set: then builds before it can read the
record.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from common.schema import describe_schema
from updater.core.breaker import Breaker, BreakerName, assume_safe
from updater.core.record import ModelRecord
from updater.core.rules import Rules

RECORD_SCHEMA = 2
# Schema 1 → 2. Every old name is unique within a record and was never used again, so that keys need no path.
_RENAMED_KEYS: Mapping[str, str] = {
    "asked": "requested_revision",
    "fallback": "cpu_fallback",
    "floor": "min_version",
    "front_life": "server_incarnation",
    "hold_reason": "pause_reason",
    "last_looked_at": "last_polled_at",
    "looks": "polls",
    "on_hold": "paused",
    "pause_seconds": "retry_in_seconds",
    "released": "unquarantined",
    "seconds_to_look": "seconds_to_poll",
}
# By the (new) key whose value was renamed.
_RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "ends_in": {"AGAIN": "RETRY"},
    "held_for": {"FRONT_CRASHED": "SERVER_CRASHED"},
    "kind": {"ASKED": "REQUESTED", "FALLBACK": "REVERT", "RETURN": "FAILBACK"},
    "name": {"accuracy_floor": "min_accuracy"},  # of a measured number
    "reason": {
        "FRONT_CRASHED": "SERVER_CRASHED",
        "FRONT_STOPPED": "SERVER_STOPPED",
        "FRONT_UNREACHABLE": "SERVER_UNREACHABLE",
        "ON_HOLD": "PAUSED",
        "TERM_EXPIRED": "LEASE_EXPIRED",
        "UNDER_FLOOR": "BELOW_MIN_ACCURACY",
    },
}
_RENAMED_EVENTS: Mapping[str, str] = {
    "quarantine_released": "quarantine_lifted",
    "return_failed": "failback_failed",
    "update_asked": "update_requested",
    "updates_held": "updates_paused",
    "wish_refused": "command_refused",
}
# Times that are waited for or were spent: a wait that never ends, or a negative one, would control updates.
_TIMES = frozenset(
    {"calm_seconds", "left_seconds", "retry_in_seconds", "seconds_to_poll", "stage_seconds", "warm_seconds_left"}
)
_PLAIN = frozenset({str, bool, int, float})  # exactly these types: a StrEnum is an instance of str too
T = TypeVar("T")


class RecordUnreadable(ValueError):
    """A record on disk is malformed, or of a schema that this build does not know."""


def to_json(value: object) -> dict[str, Any]:
    """A record, or a part of one that is stored separately (update, evidence), as a JSON object with schema version."""
    return {"schema_version": RECORD_SCHEMA, **_plain(value)}


def from_json(row: Mapping[str, Any], rules: Rules | None = None) -> ModelRecord:
    """Read a record.

    Args:
        row: written by `to_json` of this build or an earlier one.
        rules: if given, a breaker that cannot be read is replaced by the safe one.

    Raises:
        RecordUnreadable: it is malformed, or of a schema that this build does not know.
    """
    row = _upgrade(row, row.get("schema_version"))
    for name in BreakerName if rules is not None else ():
        if rules is not None and not _is_breaker(row.get(name.value), name):
            row[name.value] = _plain(assume_safe(name, rules.breakers[name]))
    record = _checked(ModelRecord, row)
    return record if "former" in row else replace(record, former=tuple(sorted(record.recorded_digests)))


def read(kind: type[T], row: Mapping[str, Any]) -> T:
    """Read a part of a record that is stored separately, for example an `Evidence` of the audit trail.

    Such rows had no schema version in schema 1.

    Raises:
        RecordUnreadable: it is malformed, or of a schema that this build does not know.
    """
    return _checked(kind, _upgrade(row, row.get("schema_version", 1)))


def current_event_name(name: str) -> str:
    """The present name of an event that an older build may have written."""
    return _RENAMED_EVENTS.get(name, name)


def _upgrade(row: Mapping[str, Any], version: object) -> dict[str, Any]:
    """The same row in the present schema, without its schema version."""
    if type(version) is not int or not 1 <= version <= RECORD_SCHEMA:
        raise RecordUnreadable(describe_schema("a record", version, RECORD_SCHEMA))
    row = {key: value for key, value in row.items() if key != "schema_version"}
    renamed: dict[str, Any] = _rename(row) if version == 1 else row
    return renamed


def _rename(value: Any, key: str = "") -> Any:  # noqa: ANN401  any part of a record
    if isinstance(value, dict):
        names = {name: _RENAMED_KEYS.get(name, name) for name in value}
        return {names[name]: _rename(entry, names[name]) for name, entry in value.items()}
    if isinstance(value, list):
        return [_rename(entry, key) for entry in value]
    return _RENAMED_VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value


def _checked(kind: type[T], row: object) -> T:
    found = _read(kind, row, kind.__name__)
    if not isinstance(found, kind):
        raise RecordUnreadable(f"{kind.__name__} is malformed")
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401  any part of a record
    kind: Any = type(value)
    if value is None or kind in _PLAIN:
        return value
    names = _names(kind)
    if names is not None:
        rows = ((name, getattr(value, name)) for name in names)
        unset = _omitted(kind)
        return {name: _plain(entry) for name, entry in rows if name not in unset or entry != unset[name]}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return value.isoformat() if isinstance(value, datetime) else value


@cache
def _names(kind: type) -> tuple[str, ...] | None:
    """Fields of a dataclass; None for anything else."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None


@cache
def _omitted(kind: type) -> Mapping[str, object]:
    """Fields of a dataclass that are not written while they have this value."""
    return {field.name: field.default for field in fields(kind) if field.metadata.get("omit_default")}


def _read(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401  any part of a record
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _read(next(part for part in get_args(kind) if part is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordUnreadable(f"{where} is no list")
        return tuple(_read(get_args(kind)[0], entry, where) for entry in value)
    if is_dataclass(kind):
        return _read_fields(kind, value, where)
    return _read_plain(kind, value, where)


def _read_plain(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401  any part of a record
    try:
        if issubclass(kind, Enum):
            return kind(value)
        if kind is datetime and isinstance(value, str):
            return datetime.fromisoformat(value)
    except ValueError as error:
        raise RecordUnreadable(f"{where} is {str(value)[:40]!r}") from error
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _read_float(value, where)
    if type(value) is not kind:
        raise RecordUnreadable(f"{where} is no {kind.__name__}")
    return value


def _read_float(value: float, where: str) -> float:
    """A number; Infinity only where it is no time, as in the evidence of a change, and NaN nowhere."""
    try:
        found = float(value)
    except OverflowError as error:  # an integer of hundreds of digits
        raise RecordUnreadable(f"{where} is too large a number") from error
    is_time = where.rpartition(".")[2] in _TIMES
    if math.isnan(found) or (is_time and not 0.0 <= found < math.inf):
        raise RecordUnreadable(f"{where} is {found}")
    return found


def _read_fields(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401  any part of a record
    if not isinstance(value, Mapping):
        raise RecordUnreadable(f"{where} is no object")
    known = {field.name: field for field in fields(kind)}
    unknown = set(value) - set(known)
    if unknown:
        raise RecordUnreadable(f"{where} has the unknown key {min(map(str, unknown))[:40]!r}")
    missing = [
        name
        for name, field in known.items()
        if name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise RecordUnreadable(f"{where} lacks {missing[0]}")
    hints = _hints(kind)
    return kind(**{name: _read(hints[name], entry, f"{where}.{name}") for name, entry in value.items()})


def _is_breaker(row: object, name: BreakerName) -> bool:
    try:
        return _checked(Breaker, row).name is name
    except RecordUnreadable:
        return False


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
