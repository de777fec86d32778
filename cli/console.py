"""`hotslot console`: the web console, a process of its own."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cli.endpoint import Endpoint, TlsTrust, calls_server
from cli.healthcheck import to_target
from cli.output import err, print_text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import Settings, StateDir, read_settings
from cli.state_folder import state_folder
from common import logs
from common.address import ListenFailed
from common.console_settings import ConsoleSection
from common.paths import run_folder
from common.reload import FileUnusable
from common.settings import Mistake, SettingsInvalid, list_mistakes, settings_path

EXAMPLE = """Example:  hotslot console

Next:  open the address that it prints."""
_EXTRA = ("starlette", "uvicorn", "jinja2", "multipart", "python_multipart")
_MISSING = "the console needs more packages: install the wheel with its extra `console` (docs/how-to/install.md)"


@calls_server
def console(
    *,
    endpoint: Endpoint,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="HOST", help="Address to listen on. Default: 127.0.0.1.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port to listen on. Default: 50080.", show_default=False),
    ] = None,
    operate: Annotated[
        bool,
        typer.Option(
            "--operate",
            help="Let logged-in operators approve, roll back, pause, resume, end a quarantine and add golden items; "
            "needs --tokens.",
            show_default=False,
        ),
    ] = False,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="File of those who may log in; `hotslot token new --file FILE NAME` adds one.",
            show_default=False,
        ),
    ] = None,
    base_path: Annotated[
        str | None,
        typer.Option("--base-path", metavar="PATH", help="Path under which a proxy shows it.", show_default=False),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Serve web pages to try a model, watch swaps, and see what a revision changes.

    Defaults are the `[console]` section of the settings file. It only calls the
    server and the updater, and changes nothing without --operate.
    """
    settings = read_settings() if settings_path().is_file() else None
    section = _section(settings, host=host, port=port, operate=operate or None, tokens_file=tokens, base_path=base_path)
    level = "info" if settings is None else settings.logs.level
    _serve(section, endpoint, run_folder(state_folder(state_dir)), level)


def _serve(section: ConsoleSection, endpoint: Endpoint, folder: Path, level: str) -> None:
    try:
        from console.main import run  # noqa: PLC0415  its packages are an extra
        from console.upstream import ServerAddress  # noqa: PLC0415  see above
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _EXTRA:
            raise CommandFailed(_MISSING) from error
        raise
    known, has_settings = endpoint, settings_path().is_file()

    def find_server() -> ServerAddress:
        nonlocal known
        # Half a file, or one that is away for a moment: the next look finds the whole one.
        with contextlib.suppress(WronglyUsed, SettingsInvalid, OSError):
            found = known if endpoint.again is None else endpoint.again()
            if settings_path().is_file() or not has_settings:
                known = found
        target, trust = to_target(known.address), known.trust or TlsTrust()
        credentials = (trust.ca, trust.certificate, trust.key, trust.name)
        return ServerAddress(target, *credentials, is_secure=known.trust is not None, token=known.token)

    with logs.configure("console", level):
        log = logs.get_logger()

        def on_ready(url: str) -> None:
            log.info("console_ready", url=url, operate=section.operate)
            if err.is_terminal:
                print_text("the console is at ", (url, "bold"), " (Ctrl-C ends it)")

        try:
            run(section, find_server, folder, log, on_ready)
        except ListenFailed as error:
            raise CommandFailed(str(error)) from error
        except FileUnusable as error:
            raise WronglyUsed(str(error)) from error


def _section(settings: Settings | None, **given: object) -> ConsoleSection:
    """`[console]` with the options of the command line.

    Raises:
        WronglyUsed: they do not go together.
    """
    section = ConsoleSection() if settings is None else settings.console
    values = section.model_dump() | {name: value for name, value in given.items() if value is not None}
    try:
        return ConsoleSection.model_validate(values)
    except ValidationError as error:
        raise WronglyUsed("; ".join(map(_describe, list_mistakes(error)))) from error


def _describe(mistake: Mistake) -> str:
    option = "--tokens" if mistake.key == "tokens_file" else f"--{mistake.key.replace('_', '-')}"
    sentence = mistake.message.removeprefix("value error, ")
    return (
        f"{option}: {sentence} (found {mistake.found})" if mistake.key else sentence.replace("tokens_file", "--tokens")
    )
