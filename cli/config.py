"""`hotslot config …`: check, show and explain the settings. Works without a server."""

from collections.abc import Iterator
from typing import cast

import typer
from rich.table import Table

from cli.output import DIM, DOUBTFUL, GOOD, out, print_text, text
from cli.reference import (
    LIST_MARK,
    LIST_OF_TABLES,
    TABLE_OF_TABLES,
    SettingRow,
    reference_page,
    setting_rows,
    toml_value,
)
from cli.settings import Config, Settings, listening_address, read_settings
from common.paths import CONTROL_SOCKET, SUPERVISOR_SOCKET, run_folder, socket_path
from common.settings import Mistake, SettingsInvalid, settings_path

app = typer.Typer(no_args_is_help=True)
DOCS = "docs/configuration.md"
_PER_MODEL = "updater.models.NAME."


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
    for key, value, row in effective(settings):
        is_default = value == row.default
        default = "" if is_default else row.default
        table.add_row(text(key), text((value, DIM if is_default else DOUBTFUL)), text((default, DIM)))
    out.print(table)
    print_text((f"file: {settings_path()}; every key is explained in {DOCS}", DIM))


@app.command(epilog=f"Example:  hotslot config reference > {DOCS}")
def reference() -> None:
    """Print the Markdown page that explains every key."""
    out.print(reference_page(), end="", markup=False, soft_wrap=True)


def effective(settings: Settings) -> list[tuple[str, str, SettingRow]]:
    """Key, value and declaration of every setting; a list of tables key by key."""
    found: list[tuple[str, str, SettingRow]] = []
    for row in setting_rows():
        if row.kind in (LIST_OF_TABLES, TABLE_OF_TABLES):
            continue
        if row.key.startswith(_PER_MODEL):
            rest = row.key.removeprefix(_PER_MODEL)
            for model_name, section in settings.updater.models.items():
                found.append((f"updater.models.{model_name}.{rest}", toml_value(_value(section, rest)), row))
            continue
        if LIST_MARK not in row.key:
            found.append((row.key, toml_value(_value(settings, row.key)), row))
            continue
        tables, _, name = row.key.partition(f"{LIST_MARK}.")
        for position, table in enumerate(cast("tuple[object, ...]", _value(settings, tables))):
            found.append((f"{tables}[{position}].{name}", toml_value(getattr(table, name)), row))
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
