"""What `hotslot config check` finds beyond types and ranges: between settings, in files, and on this machine."""

from collections.abc import Iterator
from datetime import datetime

from cli.settings import Settings
from common.address import ListenAddress, find_fault, parse_address
from common.exposure import GRPC_STEP, METRICS_STEP, describe_exposure, describe_open_calls
from common.paths import CONTROL_SOCKET, SUPERVISOR_SOCKET, run_folder, socket_path
from common.reload import FileUnusable
from common.settings import Mistake, SettingsInvalid
from common.tls import Certificate, covers_name, find_ending, find_invalidity, load_certificate
from common.tokens import Tokens, load_tokens


def list_mistakes(settings: Settings) -> list[Mistake]:
    """Everything with which the stack would not start, or not stop in order."""
    return [
        *_check_paths(settings),
        *_check_stop_seconds(settings),
        *_check_same_port(settings),
        *(mistake for mistake in (_load_certificate(settings), _load_tokens(settings)) if isinstance(mistake, Mistake)),
    ]


def list_addresses(settings: Settings) -> dict[str, str]:
    """Where the processes will listen, and what is served, for people."""
    rows = {what: _describe(address) for what, _, address in _listeners(settings)}
    for what, scheme in (("metrics", "http"), ("updater metrics", "http")):
        if what in rows:
            rows[what] = f"{scheme}{'s' if settings.tls.metrics else ''}://{rows[what]}/metrics"
    protection = ["TLS" if settings.tls.files is not None else "no TLS"]
    if settings.tls.client_ca_file is not None:
        protection.append("client certificates")
    protection.append("tokens" if settings.server.tokens_file is not None else "no tokens")
    return {
        **rows,
        "access": ", ".join(protection),
        "control": f"unix:{run_folder(settings.state_dir) / CONTROL_SOCKET}",
        "models": ", ".join(f"{model.name} ({model.task.value}, {model.device})" for model in settings.models),
    }


def list_doubts(settings: Settings, now: datetime) -> Iterator[str]:
    """Sentences about what starts and is probably not meant so. The settings must have no mistakes."""
    for _, _, address in _listeners(settings):
        fault = find_fault(address)
        if fault:
            yield f"on this machine: {fault}"
    yield from _doubt_exposure(settings)
    scheduling = settings.scheduling
    if scheduling.caller_metadata_key and settings.tls.client_ca_file is not None and not scheduling.proxy_certificates:
        yield (
            "scheduling.caller_metadata_key names no caller: every client shows a certificate, and "
            "scheduling.proxy_certificates lists none as a proxy's"
        )
    certificate, tokens = _load_certificate(settings), _load_tokens(settings)
    if isinstance(certificate, Certificate):
        yield from _doubt_certificate(settings, certificate, now)
    if isinstance(tokens, Tokens):
        if not tokens.entries:
            yield "the tokens file has no token, so every call is refused; `hotslot token new NAME` makes one"
        if not settings.scheduling.caller_metadata_key:
            for caller in settings.callers:
                if caller.name not in tokens.names:
                    yield f"[[callers]] {caller.name} has no token in the tokens file"


def _listeners(settings: Settings) -> Iterator[tuple[str, str, ListenAddress]]:
    """Name, key of the port, and address of each listener that is on; in the order of their importance."""
    server, health, updater = settings.server, settings.health, settings.updater
    rows = [
        ("gRPC", "server.port", server.host, server.port),
        ("health", "health.port", health.host, health.port),
        ("metrics", "server.metrics_port", server.metrics_host, server.metrics_port),
        ("updater metrics", "updater.metrics_port", updater.metrics_host, updater.metrics_port),
    ]
    for what, key, host, port in rows:
        if port >= 0:
            yield what, key, parse_address(host, port)


def _describe(address: ListenAddress) -> str:
    return f"{address}" + ("" if address.port or address.path else " (a free port)")


def _check_paths(settings: Settings) -> list[Mistake]:
    try:
        socket_path(settings.state_dir, SUPERVISOR_SOCKET)  # the longest path
    except SettingsInvalid as error:
        return error.mistakes
    return []


def _check_stop_seconds(settings: Settings) -> Iterator[Mistake]:
    """The server must have time to drain before it is killed, or it loses accepted calls."""
    needed, stop = settings.drain_seconds, settings.watchdog.stop_seconds
    if stop <= needed:
        sum_of = "server.drain_delay_seconds + server.grace_seconds + runner.retire_seconds"
        message = f"too short to drain, the server would be killed: more than {needed:g}, which is {sum_of}"
        yield Mistake("watchdog.stop_seconds", message, str(stop))


def _check_same_port(settings: Settings) -> Iterator[Mistake]:
    """Two listeners on one address: the second would not start."""
    taken: dict[ListenAddress, str] = {}
    for _, key, address in _listeners(settings):
        if not address.port and address.path is None:
            continue
        if address in taken:
            yield Mistake(key, f"{address} is the address of {taken[address]} too; choose another port")
        taken.setdefault(address, key)


def _load_certificate(settings: Settings) -> Certificate | Mistake | None:
    files = settings.tls.files
    try:
        return None if files is None else load_certificate(files)
    except FileUnusable as error:
        return Mistake("tls", str(error))


def _load_tokens(settings: Settings) -> Tokens | Mistake | None:
    path = settings.server.tokens_file
    try:
        return None if path is None else load_tokens(path)
    except FileUnusable as error:
        return Mistake("server.tokens_file", str(error))


def _doubt_exposure(settings: Settings) -> Iterator[str]:
    has_tls, asks_who = settings.tls.files is not None, settings.server.tokens_file is not None
    for what, _, address in _listeners(settings):
        if what == "gRPC":
            yield from describe_exposure("the gRPC port", address, GRPC_STEP, has_tls=has_tls)
            yield from describe_open_calls(address, asks_who=asks_who or settings.tls.client_ca_file is not None)
        elif what != "health":  # which has no TLS, and tells no more than whether models are ready
            yield from describe_exposure(f"the {what} port", address, METRICS_STEP, has_tls=settings.tls.metrics)


def _doubt_certificate(settings: Settings, certificate: Certificate, now: datetime) -> Iterator[str]:
    yield from filter(None, (find_invalidity(certificate, now) or find_ending(certificate, now),))
    yield from certificate.warnings
    listening = parse_address(settings.server.host, settings.server.port)
    is_any = listening.host in ("0.0.0.0", "::")  # noqa: S104  compared with, not bound
    if certificate.names and not is_any and listening.path is None and not covers_name(certificate, listening.host):
        names = ", ".join(certificate.names)
        yield f"the certificate is for {names}, not for {listening.host}; clients must connect by one of its names"
