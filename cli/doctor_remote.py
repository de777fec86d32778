"""The checks of `hotslot doctor` that ask the server, the updater and the hubs."""

from collections.abc import Iterator

import grpc

from cli.clients import connection, updates_endpoint
from cli.doctor_checks import Finding, Level
from cli.endpoint import Endpoint
from cli.hub_doctor import examine_model
from cli.output import enum_word, seconds
from cli.problems import CommandFailed
from cli.settings import Settings
from cli.status import StatusReport, fetch_status
from common.address import parse_address
from common.clock import SystemClock
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from hotslot.updates.v1.updates_pb2_grpc import UpdatesServiceStub

TIMEOUT_SECONDS = 5.0
MAX_METRICS_BYTES = 8 << 20
_LEVELS = {
    status_pb2.HEALTH_LEVEL_OK: Level.GOOD,
    status_pb2.HEALTH_LEVEL_DEGRADED: Level.DOUBTFUL,
    status_pb2.HEALTH_LEVEL_FAILED: Level.BAD,
}
_OPEN = "OPEN"


def ask_server(endpoint: Endpoint) -> tuple[StatusReport | None, list[Finding]]:
    """The server's own report, and what it says about its health."""
    try:
        report = fetch_status(endpoint)
    except CommandFailed as error:
        if "TOKEN_MISSING" in str(error):
            action = "`hotslot status --token-file FILE` shows its health"
            return None, [Finding("server", Level.UNKNOWN, "it asks for a token", action)]
        return None, [Finding("server", Level.BAD, str(error), "the lines about processes say whether it runs")]
    return report, list(judge_report(report))


def judge_report(report: StatusReport) -> Iterator[Finding]:
    """The findings in a server's report. Pure."""
    server = report.server
    process, resources = server.process, server.resources
    lag = process.loop_lag.ToTimedelta().total_seconds()
    notes = [f"event loop {seconds(lag)} late at most"]
    notes += [f"{process.dropped_log_lines} log lines dropped"] if process.dropped_log_lines else []
    notes += ["draining"] if process.draining else []
    level = _level(process.level)
    if level is Level.GOOD and process.dropped_log_lines:
        level = Level.DOUBTFUL
    action = "give it more CPU time, and read its log faster" if level is not Level.GOOD else ""
    yield Finding("server", level, ", ".join(notes), action)
    words = "; ".join(resources.warnings) or f"{resources.descriptors_used} of {resources.descriptors_limit} files open"
    yield Finding("server", _level(resources.level), words, "see memory, disk and limits" if resources.warnings else "")
    for warning in server.access.warnings:
        yield Finding("access", _level(server.access.level), warning)
    for capability in server.capabilities:
        words = capability.reason or ("ready" if capability.ready else "not ready")
        bad = _level(capability.level) is not Level.GOOD
        found = f"{capability.model}: {words}, {capability.waiting} waiting"
        yield Finding("models", _level(capability.level), found, "`hotslot status` shows its slots" if bad else "")
        if capability.poison_inputs:
            found = f"{capability.model}: {capability.poison_inputs} inputs end its runner and are refused"
            yield Finding("models", Level.DOUBTFUL, found, "find reason POISON_INPUT in the log")


def ask_updater(settings: Settings) -> tuple[pb.GetStatusResponse | None, list[Finding]]:
    """The updater's state of all models, and what it says."""
    if not settings.updater.models:
        return None, [Finding("updates", Level.GOOD, "no model is kept up to date by the settings")]
    try:
        with connection(updates_endpoint(settings.state_dir), TIMEOUT_SECONDS) as channel:
            response = UpdatesServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=TIMEOUT_SECONDS)
    except (CommandFailed, grpc.RpcError) as error:
        return None, [Finding("updates", Level.BAD, f"the updater does not answer: {error}", "see processes")]
    return response, [finding for state in response.models for finding in judge_updates(state)]


def judge_updates(state: pb.ModelUpdates) -> Iterator[Finding]:
    """The findings in the state of one model's updates. Pure."""
    name, stage = state.model, enum_word(pb.UpdateStage.DESCRIPTOR, state.stage)
    if state.fault:
        yield Finding("updates", Level.BAD, f"{name}: {state.fault}", state.advice)
        return
    level = Level.DOUBTFUL if stage == "held" or state.paused or state.HasField("cpu_fallback") else Level.GOOD
    what = f", {state.current.revision}: {state.current.message}" if state.HasField("current") else ""
    yield Finding("updates", level, f"{name}: {'paused, ' if state.paused else ''}{stage}{what}", state.advice)
    for breaker in state.breakers:
        if breaker.state == _OPEN:
            action = f"`hotslot updates breaker reset {breaker.name}` tries at once"
            found = f"{name}: breaker {breaker.name} is open: {breaker.reason}"
            yield Finding("updates", Level.DOUBTFUL, found, action)
    for again in state.republished:
        found = f"{name}: {again.revision} has other content on the hub than when it was fetched"
        yield Finding("updates", Level.DOUBTFUL, found, "ask who published it; it is not installed")


def ask_hubs(settings: Settings) -> Iterator[Finding]:
    """Ask the hub of each model, read only, as `hotslot hub doctor` does."""
    for name in settings.updater.models:
        try:
            place, found = examine_model(settings.updater, name, settings.state_dir)
        except CommandFailed as error:
            yield Finding("hub", Level.BAD, f"{name}: {error}", f"`hotslot hub doctor {name}` shows more")
            continue
        usable = found.is_usable
        words = f"{name}: {found.names} revisions at {place}"
        notes = "; ".join(found.notes)
        action = "" if usable else notes or f"`hotslot hub doctor {name}` says why nothing can be followed"
        yield Finding("hub", Level.GOOD if usable else Level.DOUBTFUL, words, action)


def read_metrics(settings: Settings) -> Iterator[tuple[str, str]]:
    """The metrics of server and updater, by process; those that cannot be read are left out."""
    # The command line starts without an HTTP library.
    from updater.http.client import HttpFailed, HttpLimits, HttpRequest, allow_any_address, open_response  # noqa: PLC0415
    from updater.http.endpoint import parse_endpoint  # noqa: PLC0415

    limits = HttpLimits(TIMEOUT_SECONDS, TIMEOUT_SECONDS, TIMEOUT_SECONDS)
    for name, section in (("server", settings.server), ("updater", settings.updater)):
        address = parse_address(section.metrics_host, section.metrics_port) if section.metrics_port > 0 else None
        if settings.tls.metrics or address is None or address.path is not None:
            continue
        request = HttpRequest("GET", parse_endpoint(f"http://{address.client_target()}/metrics"), {})
        try:
            with open_response(request, limits, SystemClock(), may_reach=allow_any_address) as response:
                yield name, b"".join(response.pieces(MAX_METRICS_BYTES))[:MAX_METRICS_BYTES].decode(errors="replace")
        except HttpFailed:
            continue


def _level(level: status_pb2.HealthLevel.ValueType) -> Level:
    return _LEVELS.get(level, Level.UNKNOWN)
