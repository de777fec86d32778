"""`hotslot config …`: check, show and explain the settings. Works without a server."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.table import Table

from cli.output import DIM, DOUBTFUL, GOOD, out, print_text, text
from cli.settings import Config, Settings, listening_address, read_settings
from common.paths import CONTROL_SOCKET, SUPERVISOR_SOCKET, run_folder, socket_path
from common.settings import Mistake, SettingsInvalid, settings_path

app = typer.Typer(no_args_is_help=True)
DOCS = "docs/configuration.md"
_PER_MODEL = "updater.models.NAME."
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


@app.command(epilog="Example:  hotslot config check --config hotslot.toml")
def check(*, config: Config = None) -> None:
    """Report all mistakes of the settings at once, or say where the server will listen."""
    settings = read_settings(config)
    mistakes = [*_paths_too_long(settings), *_killed_while_ending(settings)]
    if mistakes:
        raise SettingsInvalid(mistakes)
    server = settings.server
    metrics = "off" if server.metrics_port < 0 else f"http://{server.metrics_host}:{server.metrics_port}/metrics"
    rows = {
        "gRPC": listening_address(settings) + ("" if server.port else " (a free port)"),
        "metrics": metrics,
        "control": f"unix:{run_folder(settings.state_dir) / CONTROL_SOCKET}",
        "models": ", ".join(f"{model.name} ({model.task.value}, {model.device})" for model in settings.models),
    }
    print_text(("ok", GOOD), f"  {settings_path()}")
    _print_rows(rows)


@app.command(epilog="Example:  hotslot config show")
def show(*, config: Config = None) -> None:
    """Show every setting in effect; what differs from its default stands out."""
    settings = read_settings(config)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("key", "value", "default"):
        table.add_column(heading, overflow="fold")
    for key, value, row in list_effective(settings):
        is_default = value == row.default
        default = "" if is_default else row.default
        table.add_row(text(key), text((value, DIM if is_default else DOUBTFUL)), text((default, DIM)))
    out.print(table)
    print_text((f"file: {settings_path()}; every key is explained in {DOCS}", DIM))


@app.command(epilog=f"Example:  hotslot config reference > {DOCS}")
def reference() -> None:
    """Print the Markdown page that explains every key."""
    out.print(render_reference(), end="", markup=False, soft_wrap=True)


def list_effective(settings: Settings) -> list[tuple[str, str, SettingRow]]:
    """Key, value and declaration of every setting; a list of tables key by key."""
    found: list[tuple[str, str, SettingRow]] = []
    for row in list_settings():
        if row.kind in (LIST_OF_TABLES, TABLE_OF_TABLES):
            continue
        if row.key.startswith(_PER_MODEL):
            rest = row.key.removeprefix(_PER_MODEL)
            for model_name, section in settings.updater.models.items():
                found.append((f"updater.models.{model_name}.{rest}", format_toml(_value(section, rest)), row))
            continue
        if LIST_MARK not in row.key:
            found.append((row.key, format_toml(_value(settings, row.key)), row))
            continue
        tables, _, name = row.key.partition(f"{LIST_MARK}.")
        for position, table in enumerate(cast("tuple[object, ...]", _value(settings, tables))):
            found.append((f"{tables}[{position}].{name}", format_toml(getattr(table, name)), row))
    return found


def _paths_too_long(settings: Settings) -> list[Mistake]:
    try:
        socket_path(settings.state_dir, SUPERVISOR_SOCKET)  # the longest
    except SettingsInvalid as error:
        return error.mistakes
    return []


def _killed_while_ending(settings: Settings) -> Iterator[Mistake]:
    """A server that ends in order must be through before it is killed, or accepted calls are lost."""
    server, stop = settings.server, settings.watchdog.stop_seconds
    needed = server.drain_delay_seconds + server.grace_seconds + settings.runner.retire_seconds
    if stop <= needed:
        sum_of = "server.drain_delay_seconds + server.grace_seconds + runner.retire_seconds"
        message = f"too short, the server is killed before it has ended: more than {needed:g}, which is {sum_of}"
        yield Mistake("watchdog.stop_seconds", message, str(stop))


def _value(section: object, key: str) -> object:
    value = section
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _print_rows(rows: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=DIM)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, text(value))
    out.print(table)


def list_settings() -> list[SettingRow]:
    """All keys, in the order of their declaration."""
    return list(_rows(Settings, ""))


def render_reference() -> str:
    """The Markdown page of all keys, a table for each section of the file."""
    rows = list_settings()
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


def format_toml(value: object) -> str:
    """A value as one would write it in the file."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return UNSET
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(format_toml(one) for one in value)}]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {format_toml(one)}" for key, one in value.items())
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
    return REQUIRED if field.is_required() else format_toml(field.default)


def _section(key: str) -> str:
    section, dot, _ = key.rpartition(".")
    return section if dot else ""


def _heading(section: str) -> str:
    if not section:
        return "Top level"
    return f"`[[{section.removesuffix('[]')}]]`" if section.endswith("[]") else f"`[{section}]`"
