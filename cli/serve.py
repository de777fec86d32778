"""`hotslot serve`: runs the whole stack in the foreground, and prints what to try once it is ready."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.bundles import ImportResult, import_bundle, is_loadable, print_import
from cli.endpoint import resolve_endpoint
from cli.hub_serve import serve_hub_while
from cli.output import DIM, GOOD, err, seconds, text
from cli.problems import CommandFailed
from cli.settings import PROJECT_FOLDER, Config, Settings, listening_address, read_settings
from common.address import ListenFailed, open_listener, parse_address, unix_target
from common.clock import Clock, SystemClock
from common.engine_files import Task
from common.exit_codes import ExitCode, to_shell_code
from common.paths import CONTROL_SOCKET, run_folder
from common.sealing import Convert, run_convert
from common.source import PRECISIONS
from common.stop_signals import StopSignals

EXAMPLE = """Example:  hotslot serve --demo

Next:  in another terminal, `hotslot status`, `hotslot predict PICTURE STATEMENT` and `hotslot tag ADDRESS`."""
DEMO_MODELS = {
    name: PROJECT_FOLDER / "examples" / name / "v1.0.0" for name in ("shapes", "addresses")
}  # name in the settings → folder to import
DEMO_PICTURE = "examples/shapes/pictures/two-red-circles.png"
DEMO_ADDRESS = "浙江省杭州市余杭区五常街道文一西路969号"
STACK_COMMAND = (
    sys.executable,
    "-P",  # nothing is imported from the user's folder
    "-m",
    "hotslot_watchdog.launch",
    "-m",
    "hotslot_watchdog.stack",
)  # what deploy/run-stack runs, with this very interpreter
CHECK_SECONDS = 0.2
PROGRESS_SECONDS = 1.0
_NO_DEMO = (
    "the demo models, their settings and golden sets are in hotslot's source tree, not in this installation: run "
    "`make serve` there, or serve a model of yours without --demo"
)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    *,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo", help="Import the demo models first, unless they are imported already.", show_default=False
        ),
    ] = False,
    serve_hub: Annotated[
        Path | None,
        typer.Option(
            "--serve-hub",
            metavar="DIR",
            help="Also serve this folder hub, at the address in hub_endpoint.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append the log lines to this file; the terminal then shows only what a person reads.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Run server, updater and watchdog in the foreground, until Ctrl-C."""
    if demo and not all(folder.is_dir() for folder in DEMO_MODELS.values()):
        raise CommandFailed(_NO_DEMO)
    settings = read_settings(config)
    check_ports(settings)
    if demo:
        import_demo(settings)
    _name_missing(settings)
    asked_for = [section.hub_model for section in settings.updater.models.values() if section.hub_model]
    with serve_hub_while(serve_hub, settings.updater.hub_endpoint, asked_for):
        code = _run_and_report(settings, log)
    raise typer.Exit(code)


def _name_missing(settings: Settings) -> None:
    """Say for each model without a bundle how to import one; the server looks again where the disk does not answer."""
    for model in settings.models:
        with contextlib.suppress(OSError):
            if not is_loadable(settings.state_dir, model.name):
                step = f"hotslot bundle import DIR --model {model.name}"
                sentence = f"{model.name} has no bundle yet; import one with `{step}` and start again"
                err.print(text(sentence), soft_wrap=True)


def _run_and_report(settings: Settings, log: Path | None) -> int:
    """Run the stack, with a sentence before it and, if it failed, one after it; returns its exit code."""
    where = "the log follows here" if log is None else f"the log goes to {log}"
    err.print(text(f"starting the server; {where}, and a message when the models are ready"), soft_wrap=True)
    code = run_stack(STACK_COMMAND, lambda ended: announce(settings, ended, log), log)
    is_refused = code in (ExitCode.WRONG_USE, ExitCode.BUSY)  # with a sentence on the terminal
    if code and not is_refused and log is not None:
        err.print(text(f"it ended with exit code {code}; `hotslot logs explain {log}` says why"), soft_wrap=True)
    return code


def run_stack(command: tuple[str, ...], announce: Callable[[threading.Event], None], log: Path | None = None) -> int:
    """Run the stack as a child process until it ends; a SIGINT, SIGTERM or SIGHUP ends it in order.

    Args:
        command: of the stack.
        announce: called in its own thread, with an event that is set when the stack has ended.
        log: file to which the stack's standard output is appended; without it the stack has that of this process.

    Raises:
        CommandFailed: the file cannot be opened.

    Returns:
        The exit code of the stack, or 128 + the number of the signal that killed it.
    """
    ended = threading.Event()
    try:
        output = nullcontext(None) if log is None else log.open("ab")
    except OSError as error:
        raise CommandFailed(f"the log cannot be written to {log}: {error.strerror}") from error
    with output as stdout, _signals_forwarded() as adopt:
        # Its own process group: a terminal's Ctrl-C reaches the stack once, through this process.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, process_group=0)
        adopt(child)
        announcer = threading.Thread(target=announce, args=(ended,), daemon=True)
        announcer.start()
        code = child.wait()
        ended.set()
        announcer.join(1.0)
    return to_shell_code(code)


def announce(settings: Settings, ended: threading.Event, log: Path | None = None) -> None:
    """Wait until every model is ready, then print what to try, and where the log is."""
    if not settings.server.port:
        return  # the server takes a free port, which is in its log
    address = listening_address(settings)
    # Asked on the control socket: it needs neither TLS nor a token.
    control = unix_target(run_folder(settings.state_dir) / CONTROL_SOCKET)
    with grpc.insecure_channel(control, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not _is_serving(stub):
            if ended.wait(CHECK_SECONDS):
                return
    token = " --token-file TOKEN" if settings.server.tokens_file is not None else ""
    hotslot, tasks = _command_for("hotslot"), {model.task for model in settings.models}
    examples = {
        Task.VISUAL_ENTAILMENT: f"{hotslot} predict{token} {_example_question()}",
        Task.ADDRESS_TAGGING: f'{hotslot} tag{token} "{DEMO_ADDRESS}"',
    }
    lines = [
        *(example for task, example in examples.items() if task in tasks),
        f"{hotslot} status{token}",
        f"{_command_for('grpcurl')} {_grpcurl_flags(settings)} {address} list",
    ]
    shown = text("\n", ("hotslot is ready", GOOD), f" at {address}. Try, in another terminal:\n")
    for line in lines:
        shown.append(f"\n    {line}", "bold")
    if settings.console.enabled and settings.console.port:
        shown.append(f"\n\nOr in a browser: {_console_url(settings)}")
    if log is not None:
        shown.append(f"\n\nThe log as a story: {hotslot} logs explain {log}")
    shown.append("\n\nCtrl-C stops it.\n", DIM)
    err.print(shown, soft_wrap=True)


def _console_url(settings: Settings) -> str:
    host = parse_address(settings.console.host, settings.console.port).client_target()
    return f"http://{host}{settings.console.base_path}/"


def _grpcurl_flags(settings: Settings) -> str:
    """TLS and token as grpcurl takes them; the server's own certificate is trusted."""
    trust, files = resolve_endpoint().trust, settings.tls.files
    flags = "-plaintext" if trust is None or files is None else f"-cacert {files.certificate}"
    if trust is not None and trust.name:
        flags += f" -servername {trust.name}"
    if settings.server.tokens_file is not None:
        flags += ' -H "authorization: Bearer $(cat TOKEN)"'
    return flags


def _example_question() -> str:
    if not (PROJECT_FOLDER / DEMO_PICTURE).is_file():  # not in the source tree
        return 'PICTURE "there is a dog"'
    return f'{DEMO_PICTURE} "there are two red circles" "there are three red circles"'


def _command_for(program: str) -> str:
    """How to call a program in this shell: its name if it is on the path, else its path if it is known."""
    if shutil.which(program) is not None:
        return program
    places = (Path(sys.executable).parent / program, PROJECT_FOLDER / ".tools" / "bin" / program)
    found = next((place for place in places if place.exists()), None)
    return program if found is None else os.path.relpath(found)


def check_ports(settings: Settings) -> None:
    """Check that server and updater can listen on their addresses.

    Raises:
        CommandFailed: an address is in use, or is not one of this machine.
    """
    server, updater = settings.server, settings.updater
    places = {
        "HOTSLOT_SERVER__PORT": (server.host, server.port),
        "HOTSLOT_SERVER__METRICS_PORT": (server.metrics_host, server.metrics_port),
        "HOTSLOT_HEALTH__PORT": (settings.health.host, settings.health.port),
        "HOTSLOT_UPDATER__METRICS_PORT": (updater.metrics_host, updater.metrics_port),
    }
    for variable, (host, port) in places.items():
        if port < 0:
            continue
        try:
            open_listener(parse_address(host, port), 1).close()
        except ListenFailed as error:
            step = f"stop the program that listens there, or set {variable} to another port (0: a free one)"
            raise CommandFailed(f"{error}; {step}" if error.errno == errno.EADDRINUSE else str(error)) from error


def import_demo(settings: Settings, convert: Convert = run_convert) -> None:
    """Import the demo models that the settings name, those that are not imported yet; all at the same time.

    Raises:
        CommandFailed: the settings name none of them.
    """
    configured = {model.name for model in settings.models} & DEMO_MODELS.keys()
    if not configured:
        names = " or ".join(f'"{name}"' for name in DEMO_MODELS)
        raise CommandFailed(f"--demo needs [[models]] name = {names} in the settings; add it, or start without --demo")
    for name in configured & settings.updater.models.keys():
        hub = settings.updater.models[name].hub_folder
        if hub is not None:  # a folder that is missing is a fault: its volume may not be mounted
            (hub / name).mkdir(parents=True, exist_ok=True)
    missing = [name for name in DEMO_MODELS if name in configured and not is_loadable(settings.state_dir, name)]
    if not missing:
        return
    clock = SystemClock()

    def import_one(name: str) -> tuple[ImportResult, float]:
        started = clock.monotonic()
        folder = DEMO_MODELS[name]
        done = import_bundle(folder, settings.state_dir, name, folder.name, PRECISIONS[0], convert)
        return done, clock.monotonic() - started

    err.print(
        text(f"importing the demo {_models(missing)}, once: checked and converted; half a minute on two CPUs"),
        soft_wrap=True,
    )
    with ThreadPoolExecutor(len(missing)) as pool:
        results = {name: pool.submit(import_one, name) for name in missing}
        _show_progress(results, clock)
    for name, result in results.items():
        print_import(name, *result.result())


def _models(names: Sequence[str]) -> str:
    return f"model{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def _show_progress(results: Mapping[str, Future[tuple[ImportResult, float]]], clock: Clock) -> None:
    """Show on a terminal, until all imports have ended, which of them are not done and for how long they have run."""
    started = clock.monotonic()
    with err.status(text("converting")) as shown:
        while waiting := [name for name, result in results.items() if not result.done()]:
            shown.update(text(f"converting the {_models(waiting)}: {seconds(clock.monotonic() - started)}"))
            wait([results[name] for name in waiting], PROGRESS_SECONDS, "FIRST_COMPLETED")


def _is_serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        seen = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
    except grpc.RpcError:
        return False
    return bool(seen.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def _signals_forwarded() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Forward SIGINT, SIGTERM and SIGHUP as SIGTERM to the adopted child, including signals from before its start."""
    children: list[subprocess.Popen[bytes]] = []

    def forward() -> None:
        for child in children:
            child.terminate()

    def adopt(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        if signals.is_requested:
            child.terminate()

    with StopSignals(_STOP_SIGNALS, forward) as signals:
        yield adopt
