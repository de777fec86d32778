"""`hotslot reload`: the running server and updater take over the settings file, without a lost call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.table import Table

from cli.clients import explain_failure
from cli.config_check import list_mistakes
from cli.endpoint import Endpoint
from cli.output import BAD, DIM, DOUBTFUL, GOOD, out, plain, print_json, print_text, short, text
from cli.problems import CommandFailed
from cli.settings import AsJson, Config, Settings, StateDir, read_settings
from cli.state_folder import state_folder
from common.address import unix_target
from common.paths import CONTROL_SOCKET, UPDATES_SOCKET, run_folder
from common.settings import SettingsInvalid
from hotslot.control.v1 import control_pb2, control_pb2_grpc
from hotslot.updates.v1 import updates_pb2, updates_pb2_grpc

TIMEOUT_SECONDS = 30.0
EXAMPLE = """Example:  hotslot reload --check

Next:  `hotslot status` shows the models and the settings in use; docs/how-to/reload-settings.md explains it."""
_NEEDS = {"at once": DIM, "models": DOUBTFUL, "restart": BAD}

Call = Callable[[bool], control_pb2.SettingsReload]


def reload(
    *,
    config: Config = None,
    check: Annotated[
        bool, typer.Option("--check", help="Show what would change; change nothing.", show_default=False)
    ] = False,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Let the running server and updater take over the settings file.

    Models, limits, policies, callers and tokens change without a lost call. A
    file with mistakes, or with a change that needs a restart, changes nothing.
    """
    settings = read_settings(config)
    mistakes = list_mistakes(settings)
    if mistakes:
        raise SettingsInvalid(mistakes)
    with _processes(settings, state_dir) as calls:
        found = {name: call(True) for name, call in calls.items()}  # of both, before either changes anything
        refusing = [name for name, one in found.items() if one.refusal]
        if not check:  # a process that refuses records it, in its log, status and metrics
            found |= {name: calls[name](False) for name in refusing or calls}
    if as_json:
        print_json({name: plain(one) for name, one in found.items()})
    else:
        for name, one in found.items():
            _show(name, one, is_check=check)
    refusals = [f"{name}: {one.refusal}" for name, one in found.items() if one.refusal]
    if refusals:
        step = "; restart it, or take the change back" if any(_needs_restart(one) for one in found.values()) else ""
        raise CommandFailed(f"nothing was changed; {'; '.join(refusals)}{step}")


@contextmanager
def _processes(settings: Settings, state_dir: Path | None) -> Iterator[dict[str, Call]]:
    """The calls of the processes that run: the server's, and the updater's if there is one.

    Raises:
        CommandFailed: the server does not run, or a call failed.
    """
    folder = run_folder(settings.state_dir if state_dir is None else state_folder(state_dir))
    server, updater = (Endpoint(unix_target(folder / name)) for name in (CONTROL_SOCKET, UPDATES_SOCKET))
    if not (folder / CONTROL_SOCKET).exists():
        raise CommandFailed(
            f"no server runs in {folder}; it reads the file when it starts. After a change of state_dir, which needs "
            "a restart, name the old one with --state-dir"
        )
    with server.open() as control, updater.open() as updates:
        stub, other = control_pb2_grpc.ControlServiceStub(control), updates_pb2_grpc.UpdatesServiceStub(updates)

        def call_server(check_only: bool) -> control_pb2.SettingsReload:  # noqa: FBT001
            request = control_pb2.ReloadSettingsRequest(check_only=check_only)
            return _call(server, lambda: stub.ReloadSettings(request, timeout=TIMEOUT_SECONDS).reload)

        def call_updater(check_only: bool) -> control_pb2.SettingsReload:  # noqa: FBT001
            request = updates_pb2.ReloadSettingsRequest(check_only=check_only)
            return _call(updater, lambda: other.ReloadSettings(request, timeout=TIMEOUT_SECONDS).reload)

        has_updater = (folder / UPDATES_SOCKET).exists() and _answers(updates)
        yield {"server": call_server, **({"updater": call_updater} if has_updater else {})}


def _answers(channel: grpc.Channel) -> bool:
    """Whether a process listens: the socket of a killed one stays."""
    try:
        grpc.channel_ready_future(channel).result(timeout=2.0)
    except grpc.FutureTimeoutError:
        return False
    return True


def _call(endpoint: Endpoint, send: Callable[[], control_pb2.SettingsReload]) -> control_pb2.SettingsReload:
    try:
        return send()
    except grpc.RpcError as error:
        raise explain_failure(error, endpoint, TIMEOUT_SECONDS) from error


def _show(name: str, one: control_pb2.SettingsReload, *, is_check: bool) -> None:
    """The changes that one process takes over from the file."""
    state = ("refused", BAD) if one.refusal else ("would change", DOUBTFUL) if is_check else ("in use", GOOD)
    if not one.changes and not one.refusal:
        state = ("no change", DIM) if is_check else ("in use, no change", GOOD)
    print_text((name, "bold"), "  ", state, (f"  {one.path} {short(one.digest)}", DIM))
    table = Table.grid(padding=(0, 2, 0, 0))
    for change in one.changes:
        needs = text((change.needs, _NEEDS.get(change.needs, "")))
        table.add_row(f"  {change.key}", text((change.before, DIM), " → ", change.after), needs)
    if one.changes:
        out.print(table)
    for verb, names in (("added", one.added), ("removed", one.removed), ("replaced", one.changed)):
        if names:
            print_text((f"  models {verb}: {', '.join(names)}", DIM))


def _needs_restart(one: control_pb2.SettingsReload) -> bool:
    return any(change.needs == "restart" for change in one.changes)
