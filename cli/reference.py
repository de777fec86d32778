"""Every key of `hotslot.toml` with type, range, default and meaning, read from the settings' own declarations."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cli.settings import Settings

REQUIRED = "required"
UNSET = "unset"  # there is no word for it in the file: the key is left out
LIST_OF_TABLES, TABLE_OF_TABLES, LIST_MARK = "list of tables", "table of tables", "[]"
_JOINTS: Mapping[Any, str] = {tuple: f"{LIST_MARK}.", dict: ".NAME."}
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
_KINDS: Mapping[type, str] = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_HEADER = """\
# Configuration

One file, `hotslot.toml`, holds every process's section. It is looked for in the working folder, unless `--config` or
the variable `HOTSLOT_CONFIG` names another. The environment overrides the file: `HOTSLOT_SERVER__PORT=50052` is `port`
in `[server]`. `hotslot config check` reports all mistakes at once, `hotslot config show` what is in effect.

This page is printed by `hotslot config reference`.
"""


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One key."""

    key: str  # for example "server.port" or "models[].name"
    kind: str
    allowed: str  # empty: every value of the kind
    default: str  # as it stands in the file, or REQUIRED
    meaning: str

    @property
    def allowed_words(self) -> str:
        """Kind and range in one."""
        if self.kind == "choice":
            return self.allowed
        return f"{self.kind}, {self.allowed}" if self.allowed else self.kind


def setting_rows() -> list[SettingRow]:
    """All keys, in the order of their declaration."""
    return list(_rows(Settings, ""))


def reference_page() -> str:
    """The Markdown page of all keys, a table for each section of the file."""
    rows = setting_rows()
    sections = list(dict.fromkeys(_section(row.key) for row in rows))
    page = _HEADER
    for section in sections:
        page += f"\n## {_heading(section)}\n\n| key | type | range | default | meaning |\n|---|---|---|---|---|\n"
        for row in (row for row in rows if _section(row.key) == section):
            key = row.key.removeprefix(section).removeprefix(".")
            default = row.default if row.default in (REQUIRED, UNSET) else f"`{row.default}`{_bytes_words(row)}"
            cells = (f"`{key}`", row.kind, row.allowed, default, row.meaning)
            page += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return page


def toml_value(value: object) -> str:
    """A value as one would write it in the file."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return UNSET
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(toml_value(one) for one in value)}]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return json.dumps(value, ensure_ascii=False)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[SettingRow]:
    for name, field in model.model_fields.items():
        key, annotation = prefix + name, field.annotation
        if annotation is Any:  # a section of another process, not declared here
            continue
        section, joint = _model_in(annotation), _JOINTS.get(get_origin(annotation), ".")
        if section is None or joint != ".":
            yield SettingRow(key, _kind(annotation), _allowed(key, field), _default(field), field.description or "")
        if section is not None:
            yield from _rows(section, f"{key}{joint}")


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401  any annotation
    """The section that an annotation is, or that its list or table is made of."""
    inner = get_args(annotation)[-1] if get_origin(annotation) is dict else annotation
    inner = get_args(annotation)[0] if get_origin(annotation) is tuple else inner
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _kind(annotation: Any) -> str:  # noqa: ANN401  any annotation
    origin = get_origin(annotation)
    if origin in (Union, UnionType):  # what may be left out
        return _kind(next(one for one in get_args(annotation) if one is not NoneType))
    if origin is Literal:
        return "choice"
    if origin is tuple:
        return LIST_OF_TABLES if _model_in(annotation) else "list"
    if origin in (dict, Mapping):
        return TABLE_OF_TABLES if _model_in(annotation) else "table of texts"
    if issubclass(annotation, Enum):
        return "choice"
    return _KINDS[annotation]


def _allowed(key: str, field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return " or ".join(json.dumps(choice) for choice in choices)
    bounds = {bound: getattr(rule, bound) for rule in field.metadata for bound in _BOUNDS if hasattr(rule, bound)}
    if bounds.get("pattern") is not None:
        return f"`{bounds['pattern']}`"
    unit = " characters" if field.annotation is str else " entries" if get_origin(field.annotation) else ""
    low, high = bounds.get("ge", bounds.get("min_length")), bounds.get("le", bounds.get("max_length"))
    above = bounds.get("gt")
    if above is not None and high is not None:
        return f"more than {above:g}, at most {_number(key, high)}{unit}"
    if low is not None and high is not None:
        return f"{_number(key, low)} to {_number(key, high)}{unit}"
    return "" if high is None else f"at most {_number(key, high)}{unit}"


def _choices(annotation: Any) -> list[str]:  # noqa: ANN401  any annotation
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    is_enum = isinstance(annotation, type) and issubclass(annotation, Enum)
    return [choice.value for choice in annotation] if is_enum else []


def _number(key: str, number: float) -> str:
    if key.endswith("_bytes"):
        for name, count in _UNITS:
            if number >= count and number % count == 0:
                return f"{int(number)} ({int(number) // count} {name})"
    return f"{number:g}" if isinstance(number, float) else str(number)


def _bytes_words(row: SettingRow) -> str:
    words = _number(row.key, int(row.default)) if row.key.endswith("_bytes") else ""
    return words.removeprefix(row.default)


def _default(field: FieldInfo) -> str:
    return REQUIRED if field.is_required() else toml_value(field.default)


def _section(key: str) -> str:
    section, dot, _ = key.rpartition(".")
    return section if dot else ""


def _heading(section: str) -> str:
    if not section:
        return "Top level"
    return f"`[[{section.removesuffix('[]')}]]`" if section.endswith("[]") else f"`[{section}]`"
