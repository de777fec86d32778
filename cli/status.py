"""`hotslot status`: the models, their slots and the server's health, once or every second."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.clients import connection
from cli.endpoint import Endpoint, calls_server
from cli.output import (
    ABSENT,
    BAD,
    DIM,
    DOUBTFUL,
    GOOD,
    LEVEL_STYLES,
    enum_word,
    out,
    plain,
    print_json,
    seconds,
    short,
    size,
    text,
)
from cli.problems import CommandFailed
from cli.settings import AsJson
from common.clock import SystemClock
from hotslot.status.v1 import status_pb2, status_pb2_grpc

_ROLE_STYLES = {
    status_pb2.SLOT_ROLE_ACTIVE: GOOD,
    status_pb2.SLOT_ROLE_TRIAL: "cyan",
    status_pb2.SLOT_ROLE_CANDIDATE: "blue",
    status_pb2.SLOT_ROLE_FALLBACK: DOUBTFUL,
    status_pb2.SLOT_ROLE_FREE: DIM,
}
_STATE_STYLES = {
    status_pb2.SLOT_STATE_LOADED: GOOD,
    status_pb2.SLOT_STATE_LOADING: DOUBTFUL,
    status_pb2.SLOT_STATE_STARTING: DOUBTFUL,
    status_pb2.SLOT_STATE_RETIRING: DOUBTFUL,
    status_pb2.SLOT_STATE_FAILED: BAD,
    status_pb2.SLOT_STATE_EMPTY: DIM,
}
_SHOWN_NOTES = 4
_ALL_PERCENT = 100.0
_SHOWN_FAILURE_CHARS = 200


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A server's answers to one status request."""

    address: str
    server: status_pb2.GetServerStatusResponse
    models: status_pb2.ListModelsResponse
    received_at: datetime


def show_report(report: StatusReport) -> RenderableType:
    """A report as text of at most 80 columns."""
    server, process = report.server, report.server.process
    head = text(
        (f"hotslot {server.version}", "bold"),
        f" on {server.node} at {report.address}, up {_age(process.started_at, report.received_at)}",
    )
    return Group(head, Text(), _layers(report), *(_model(model, report.received_at) for model in report.models.models))


def _layers(report: StatusReport) -> Table:
    server = report.server
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("process", _level(server.process.level), _process(server.process))
    table.add_row("resources", _level(server.resources.level), _resources(server.resources))
    for warning in server.resources.warnings:
        table.add_row("", "", text((warning, DOUBTFUL)))
    if server.HasField("access"):
        table.add_row("access", _level(server.access.level), _access(server.access, report.received_at))
        for warning in server.access.warnings:
            table.add_row("", "", text((warning, DOUBTFUL)))
    if server.HasField("settings"):
        table.add_row("settings", _level(server.settings.level), _settings(server.settings, report.received_at))
        for warning in server.settings.warnings:
            table.add_row("", "", text((warning, DOUBTFUL)))
    for capability in server.capabilities:
        table.add_row("answers", _level(capability.level), _capability(capability, report.received_at))
        if capability.reason:
            table.add_row("", "", text((capability.reason, LEVEL_STYLES.get(capability.level, ""))))
    return table


def _process(process: status_pb2.ProcessHealth) -> Text:
    shown = text(f"event-loop lag: {seconds(process.loop_lag.ToTimedelta().total_seconds())} at most")
    if process.dropped_log_lines:
        shown.append(f", {process.dropped_log_lines} log lines dropped", DOUBTFUL)
    if process.draining:
        shown.append(", draining", DOUBTFUL)
    return shown


def _resources(seen: status_pb2.ResourceHealth) -> Text:
    parts = [
        f"memory {size(seen.memory_used_bytes)} of {size(seen.memory_total_bytes)}",
        *(f"{gpu.device} {size(gpu.used_bytes)} of {size(gpu.total_bytes)}" for gpu in seen.gpus),
        f"disk {size(seen.disk_free_bytes)} free",
        f"{seen.descriptors_used} files open",
    ]
    return text(" · ".join(parts))


def _access(seen: status_pb2.AccessStatus, now: datetime) -> Text:
    parts = ["TLS" if seen.tls else "no TLS"]
    if seen.HasField("certificate"):
        left = (seen.certificate.not_after.ToDatetime(tzinfo=UTC) - now).total_seconds()
        parts.append(f"certificate for {seconds(left)}" if left > 0 else "certificate has expired")
    if seen.client_certificates:
        parts.append("client certificates")
    parts.append("tokens" if seen.tokens else "no tokens")
    return text(" · ".join(parts))


def _settings(seen: status_pb2.SettingsStatus, now: datetime) -> Text:
    return text(f"file {short(seen.digest) or ABSENT}, read {_age(seen.loaded_at, now)} ago")


def _capability(seen: status_pb2.CapabilityHealth, now: datetime) -> Text:
    if not seen.HasField("last_inference_at"):
        shown = "no answer yet"
    else:
        took = seconds(seen.last_inference_latency.ToTimedelta().total_seconds())
        shown = f"last answer {_age(seen.last_inference_at, now)} ago, in {took}"
    line = text((seen.model, "bold"), f" {shown}, {seen.waiting} waiting")
    if seen.HasField("fallback"):
        age = _age(seen.fallback.since, now)
        line.append(f", on {seen.fallback.fallback_device} instead of {seen.fallback.device} for {age}", DOUBTFUL)
    return line


def _model(model: status_pb2.Model, now: datetime) -> RenderableType:
    head = text((model.name, "bold"), f"  {model.task}, ")
    if model.HasField("committed"):
        committed = model.committed
        head.append(f"committed {committed.revision} {short(committed.digest)} ({committed.origin})")
    else:
        head.append("nothing committed", DOUBTFUL)
    rows: list[RenderableType] = [Text(), head]
    if model.HasField("trial"):
        left = seconds(model.trial.term_left.ToTimedelta().total_seconds())
        age = _age(model.trial.started_at, now)
        share = f" ({model.trial.percent:g} %)" if model.trial.percent < _ALL_PERCENT else ""
        rows.append(text((f"  slot {model.trial.slot} on trial{share} since {age}, {left} left of its lease", "cyan")))
    rows.append(Padding(_slots(model), (0, 0, 0, 2)))
    for slot in model.slots:
        if slot.last_failure:
            failure = slot.last_failure[:_SHOWN_FAILURE_CHARS]
            rows.append(text((f"  slot {slot.name} failed last: {failure}", DOUBTFUL)))
        rows += [text((f"  slot {slot.name}: {note}", DIM)) for note in slot.notes[:_SHOWN_NOTES]]
    return Group(*rows)


def _slots(model: status_pb2.Model) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style=DIM, no_wrap=True)
    columns = []
    for slot in model.slots:
        table.add_column(overflow="fold")
        columns.append(_slot(slot, is_answering=slot.name == model.active_slot))
    for name in columns[0] if columns else ():
        table.add_row(name, *(column[name] for column in columns))
    return table


def _slot(slot: status_pb2.Slot, *, is_answering: bool) -> dict[str, Text]:
    role = enum_word(status_pb2.SlotRole.DESCRIPTOR, slot.role)
    state = enum_word(status_pb2.SlotState.DESCRIPTOR, slot.state)
    mark = ("answers", GOOD) if is_answering else ("", "")
    return {
        "slot": text((slot.name, "bold"), "  " if is_answering else "", mark),
        "role": text((role, _ROLE_STYLES.get(slot.role, ""))),
        "state": text((state, _STATE_STYLES.get(slot.state, ""))),
        "revision": _or_absent(slot.revision),
        "digest": _or_absent(short(slot.digest)),
        "device": _or_absent(slot.device),
        "precision": _or_absent(slot.precision),
        "pid": _or_absent(str(slot.pid or "")),
        "memory": _or_absent(size(slot.resident_bytes) if slot.resident_bytes else ""),
        "restarts": text((str(slot.restarts), DOUBTFUL if slot.restarts else "")),
    }


def _or_absent(shown: str) -> Text:
    return text(shown) if shown else text((ABSENT, DIM))


def _level(level: status_pb2.HealthLevel.ValueType) -> Text:
    word = enum_word(status_pb2.HealthLevel.DESCRIPTOR, level)
    return text((word, LEVEL_STYLES.get(level, "")))


def _age(moment: Timestamp, now: datetime) -> str:
    return seconds(max(0.0, (now - moment.ToDatetime(tzinfo=UTC)).total_seconds()))


EXAMPLE = """Example:  hotslot status --watch

Next:  `hotslot updates status` shows updates; the server's log explains what failed."""
WATCH_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0


@calls_server
def status(
    *,
    endpoint: Endpoint,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Repeat every second, until Ctrl-C.", show_default=False)
    ] = False,
) -> None:
    """Show the served models, their slots and the server's health."""
    if watch:
        never = threading.Event()  # only for its timeout
        with contextlib.suppress(KeyboardInterrupt):
            watch_status(endpoint, lambda: not never.wait(WATCH_SECONDS), as_json=as_json)
    elif as_json:
        print_json(_as_row(fetch_status(endpoint)))
    else:
        out.print(show_report(fetch_status(endpoint)))


def fetch_status(endpoint: Endpoint) -> StatusReport:
    """Request server status and models.

    Raises:
        CommandFailed: the server did not answer.
    """
    with connection(endpoint, TIMEOUT_SECONDS) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        server = stub.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=TIMEOUT_SECONDS)
        models = stub.ListModels(status_pb2.ListModelsRequest(), timeout=TIMEOUT_SECONDS)
    return StatusReport(endpoint.address, server, models, SystemClock().now())


def watch_status(endpoint: Endpoint, pause: Callable[[], bool], *, as_json: bool) -> None:
    """Show the status, call `pause`, and repeat as long as `pause` returns true.

    If the server does not answer, the error is shown instead, and the next attempt follows.
    """
    if as_json or not out.is_terminal:
        _print_again(endpoint, pause, as_json=as_json)
        return
    with Live(console=out, screen=True, auto_refresh=False) as live:
        live.update(_frame(endpoint), refresh=True)
        while pause():
            live.update(_frame(endpoint), refresh=True)


def _print_again(endpoint: Endpoint, pause: Callable[[], bool], *, as_json: bool) -> None:
    is_first = True
    while is_first or pause():
        is_first = False
        try:
            report = fetch_status(endpoint)
        except CommandFailed as error:
            shown: RenderableType = text((str(error), BAD))
            row: dict[str, object] = {"error": str(error)}
        else:
            shown, row = show_report(report), _as_row(report)
        if as_json:
            print_json(row)
        else:
            out.print(shown)


def _frame(endpoint: Endpoint) -> RenderableType:
    foot = text(("\nupdated every second; Ctrl-C ends it", DIM))
    try:
        return Group(show_report(fetch_status(endpoint)), foot)
    except CommandFailed as error:
        return Group(text((str(error), BAD)), foot)


def _as_row(report: StatusReport) -> dict[str, object]:
    return {"address": report.address, "server": plain(report.server), **plain(report.models)}
