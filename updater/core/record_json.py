"""A record as a plain JSON object and back: the one place where its form on disk is decided. Pure.

The form follows the dataclasses by name. What is not exactly as expected is refused, so that a record
that cannot be trusted stops updates instead of steering them: an unknown key, another type, a newer
schema. A later schema reads this one by filling in what it added.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from updater.core.breaker import Breaker, BreakerName, unreadable
from updater.core.record import Event, ModelRecord
from updater.core.rules import Rules

RECORD_SCHEMA = 1
T = TypeVar("T")


class RecordUnreadable(ValueError):
    """A record on disk is malformed, or of a schema that this build does not know."""


def to_json(record: ModelRecord) -> dict[str, Any]:
    """A record as a JSON object."""
    return {"schema_version": RECORD_SCHEMA, **_plain(record)}


def from_json(row: Mapping[str, Any], rules: Rules | None = None) -> ModelRecord:
    """Read a record.

    Args:
        row: what `to_json` made, by this build or an earlier one.
        rules: if given, a breaker that cannot be read is replaced by the safe one.

    Raises:
        RecordUnreadable: it is malformed, or of a schema that this build does not know.
    """
    row = dict(row)
    version = row.pop("schema_version", None)
    if version != RECORD_SCHEMA:
        raise RecordUnreadable(f"a record has schema version {version!r}, this build knows {RECORD_SCHEMA}")
    for name in BreakerName if rules is not None else ():
        if rules is not None and not _is_breaker(row.get(name.value), name):
            row[name.value] = _plain(unreadable(name, rules.breakers[name]))
    return read(ModelRecord, row)


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as a JSON object, with the update as it stood then."""
    plain: dict[str, Any] = _plain(event)
    return plain


def read(kind: type[T], row: object) -> T:
    """Read one dataclass, for example an `Update` or an `Evidence` of the audit trail.

    Raises:
        RecordUnreadable: it is not what it should be.
    """
    found = _read(kind, row, kind.__name__)
    if not isinstance(found, kind):
        raise RecordUnreadable(f"{kind.__name__} is malformed")
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401  any part of a record
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return value.isoformat() if isinstance(value, datetime) else value


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
        return float(value)
    if type(value) is not kind:
        raise RecordUnreadable(f"{where} is no {kind.__name__}")
    return value


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
        return read(Breaker, row).name is name
    except RecordUnreadable:
        return False


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
