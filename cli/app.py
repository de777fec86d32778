"""The command line `hotslot`: its commands, and the modules that have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

import typer

from common.exit_codes import ExitCode

_EXIT_CODES = "Exit codes: 0 done · 1 failed · 2 wrong command line or settings · 130 Ctrl-C"
_EXAMPLES = """Start here:
  hotslot serve --demo
  hotslot predict examples/shapes/pictures/two-red-circles.png "there are two red circles"
  hotslot tag "浙江省杭州市余杭区文一西路969号"
  hotslot batch pictures --statement "there is a person" --out results.jsonl
  hotslot status --watch
  hotslot healthcheck -addr 127.0.0.1:50051 -service liveness
  hotslot hub add examples/shapes/v1.0.0 v1.0.0
  hotslot updates status
  hotslot bundle import examples/shapes/v1.0.0
  hotslot config check
  hotslot reload --check
  hotslot doctor"""
_HELP_FLAGS = {"help_option_names": ["-h", "--help"]}
# The flags of grpc_health_probe have one dash, which Typer would not accept.
_PASSED_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is: a function and its EXAMPLE, or, if it has a help text, a group that is called `app`."""

    module: str
    help: str = ""
    epilog: str = ""


ENTRIES: Mapping[str, Entry] = {
    "serve": Entry("cli.serve"),
    "predict": Entry("cli.predict"),
    "tag": Entry("cli.tag"),
    "batch": Entry("cli.batch.command"),
    "status": Entry("cli.status"),
    "reload": Entry("cli.reload"),
    "console": Entry("cli.console"),
    "updates": Entry(
        "cli.updates",
        "Show, start, pause and roll back updates of the served models.",
        "Example:  hotslot updates status\n\nNext:  `hotslot updates show ID` explains one of them.",
    ),
    "hub": Entry(
        "cli.hub",
        "Publish revisions in a folder hub, list them, serve them over HTTP.",
        "Example:  hotslot hub add examples/shapes/v1.1.0 v1.1.0\n\nNext:  `hotslot updates status` follows it.",
    ),
    "golden": Entry(
        "cli.golden",
        "Record, run and show golden sets, which a new revision must pass.",
        'Example:  hotslot golden record pictures -s "there is a person"\n\nNext:  name the folder in hotslot.toml.',
    ),
    "bundle": Entry(
        "cli.bundles",
        "Import a model by hand; list and show bundles.",
        "Example:  hotslot bundle import examples/shapes/v1.0.0 --model shapes\n\nNext:  `hotslot serve` loads it.",
    ),
    "state": Entry(
        "cli.state",
        "Back up, restore and verify the state folder.",
        "Example:  hotslot state backup /backups/hotslot\n\nNext:  `hotslot state verify FOLDER` reads it all.",
    ),
    "config": Entry(
        "cli.config",
        "Check, show and document the settings.",
        "Example:  hotslot config check\n\nNext:  `hotslot serve` starts with these settings.",
    ),
    "token": Entry(
        "cli.token",
        "Make, list and revoke the tokens of callers.",
        "Example:  hotslot token new shop-backend > shop.token\n\nNext:  set server.tokens_file in hotslot.toml.",
    ),
    "metrics": Entry(
        "cli.metrics",
        "Document the metrics.",
        "Example:  hotslot metrics reference",
    ),
    "logs": Entry(
        "cli.logs",
        "Tell a log as a story, with causes and what to do.",
        "Example:  hotslot logs explain hotslot.log\n\nNext:  docs/how-to/read-the-logs.md explains single lines.",
    ),
    "alerts": Entry(
        "cli.alerts",
        "Print alert rules and a dashboard; write runbooks.",
        "Example:  hotslot alerts rules > hotslot.rules.yml\n\nNext:  docs/how-to/watch.md sets it up.",
    ),
    "doctor": Entry("cli.doctor"),
    "alert-relay": Entry("cli.alert_relay"),
}


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """The command line; if the first word is a command, with this one only: modules of others are not imported.

    Args:
        words: what is to be run; none: the whole command line.
    """
    app = typer.Typer(
        name="hotslot",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings=_HELP_FLAGS,
        epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
    )
    app.callback(invoke_without_command=True)(hotslot)
    first = words[0] if words else ""
    for name in (first,) if first in ENTRIES else ENTRIES:
        _add(app, name, ENTRIES[name])
    app.command("healthcheck", context_settings=_PASSED_THROUGH)(health_check)
    return app


def _add(app: typer.Typer, name: str, entry: Entry) -> None:
    module = import_module(entry.module)
    if entry.help:
        app.add_typer(module.app, name=name, help=entry.help, epilog=entry.epilog)
    else:
        app.command(name, epilog=module.EXAMPLE)(getattr(module, name.replace("-", "_")))


def hotslot(
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.", show_default=False)] = False,
) -> None:
    """Serve ModelScope models over gRPC, and update them while they serve.

    A new model never costs a request; a bad model never stays.
    """
    if show_version:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  slow, and seldom needed

        from cli.output import print_text  # noqa: PLC0415  as above

        try:
            print_text(f"hotslot {version('hotslot')}")
        except PackageNotFoundError:
            print_text("hotslot (not installed, no version)")
        raise typer.Exit(ExitCode.DONE)


def health_check(context: typer.Context) -> None:
    """Check the server's health once, like grpc_health_probe."""
    from cli import healthcheck  # noqa: PLC0415  of this command only

    raise typer.Exit(healthcheck.check(context.args))
