"""`hotslot status`: what is served and how it feels, once or every second."""

import contextlib
import threading
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from cli.calls import connection
from cli.console import BAD, DIM, out, print_json, text
from cli.options import Address, AsJson
from cli.plain import plain
from cli.problems import CommandFailed
from cli.settings import server_address
from cli.status_view import Report, show
from common.clock import SystemClock
from hotslot.status.v1 import status_pb2, status_pb2_grpc

EXAMPLE = "Example:  hotslot status --watch"
WATCH_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0


def status(
    *,
    address: Address = None,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every second, until Ctrl-C.", show_default=False)
    ] = False,
) -> None:
    """Show the models, their slots and the health of the server."""
    where = server_address(address)
    if watch:
        # Nobody sets it: the wait ends by its limit, or by Ctrl-C.
        nobody = threading.Event()
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            watch_status(where, lambda: not nobody.wait(WATCH_SECONDS), as_json=as_json)
    elif as_json:
        print_json(_as_row(ask(where)))
    else:
        out.print(show(ask(where)))


def ask(address: str) -> Report:
    """Everything that the server tells of itself.

    Raises:
        CommandFailed: it did not answer.
    """
    with connection(address, TIMEOUT_SECONDS) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        server = stub.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=TIMEOUT_SECONDS)
        models = stub.ListModels(status_pb2.ListModelsRequest(), timeout=TIMEOUT_SECONDS)
    return Report(address, server, models, SystemClock().now())


def watch_status(address: str, pause: Callable[[], bool], *, as_json: bool) -> None:
    """Show the status again and again while `pause`, called after each time, says to go on.

    A server that does not answer is said so in its place; it may come back.
    """
    if as_json or not out.is_terminal:
        _print_again(address, pause, as_json=as_json)
        return
    with Live(console=out, screen=True, auto_refresh=False) as live:
        live.update(_frame(address), refresh=True)
        while pause():
            live.update(_frame(address), refresh=True)


def _print_again(address: str, pause: Callable[[], bool], *, as_json: bool) -> None:
    is_first = True
    while is_first or pause():
        is_first = False
        try:
            report = ask(address)
        except CommandFailed as error:
            shown: RenderableType = text((str(error), BAD))
            row: dict[str, object] = {"error": str(error)}
        else:
            shown, row = show(report), _as_row(report)
        if as_json:
            print_json(row)
        else:
            out.print(shown)


def _frame(address: str) -> RenderableType:
    foot = text(("\nevery second; Ctrl-C ends it", DIM))
    try:
        return Group(show(ask(address)), foot)
    except CommandFailed as error:
        return Group(text((str(error), BAD)), foot)


def _as_row(report: Report) -> dict[str, object]:
    return {"address": report.address, "server": plain(report.server), **plain(report.models)}
