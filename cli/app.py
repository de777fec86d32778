"""The command line `hotslot` with all its commands."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cli import (
    alert_relay,
    alerts,
    bundles,
    config,
    console,
    doctor,
    golden,
    healthcheck,
    hub,
    logs,
    metrics,
    predict,
    reload,
    serve,
    state,
    status,
    tag,
    token,
    updates,
)
from cli.batch import command as batch
from cli.output import print_text
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

app = typer.Typer(
    name="hotslot",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_HELP_FLAGS,
    epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
)
app.command(epilog=serve.EXAMPLE)(serve.serve)
app.command(epilog=predict.EXAMPLE)(predict.predict)
app.command(epilog=tag.EXAMPLE)(tag.tag)
app.command(epilog=batch.EXAMPLE)(batch.batch)
app.command(epilog=status.EXAMPLE)(status.status)
app.command(epilog=reload.EXAMPLE)(reload.reload)
app.command(epilog=console.EXAMPLE)(console.console)
app.add_typer(
    updates.app,
    name="updates",
    help="Show, start, pause and roll back updates of the served models.",
    epilog="Example:  hotslot updates status\n\nNext:  `hotslot updates show ID` explains one of them.",
)
app.add_typer(
    hub.app,
    name="hub",
    help="Publish revisions in a folder hub, list them, serve them over HTTP.",
    epilog="Example:  hotslot hub add examples/shapes/v1.1.0 v1.1.0\n\nNext:  `hotslot updates status` follows it.",
)
app.add_typer(
    golden.app,
    name="golden",
    help="Record, run and show golden sets, which a new revision must pass.",
    epilog='Example:  hotslot golden record pictures -s "there is a person"\n\nNext:  name the folder in hotslot.toml.',
)
app.add_typer(
    bundles.app,
    name="bundle",
    help="Import a model by hand; list and show bundles.",
    epilog="Example:  hotslot bundle import examples/shapes/v1.0.0 --model shapes\n\nNext:  `hotslot serve` loads it.",
)
app.add_typer(
    state.app,
    name="state",
    help="Back up, restore and verify the state folder.",
    epilog="Example:  hotslot state backup /backups/hotslot\n\nNext:  `hotslot state verify FOLDER` reads it all.",
)
app.add_typer(
    config.app,
    name="config",
    help="Check, show and document the settings.",
    epilog="Example:  hotslot config check\n\nNext:  `hotslot serve` starts with these settings.",
)
app.add_typer(
    token.app,
    name="token",
    help="Make, list and revoke the tokens of callers.",
    epilog="Example:  hotslot token new shop-backend > shop.token\n\nNext:  set server.tokens_file in hotslot.toml.",
)
app.add_typer(
    metrics.app,
    name="metrics",
    help="Document the metrics.",
    epilog="Example:  hotslot metrics reference",
)
app.add_typer(
    logs.app,
    name="logs",
    help="Tell a log as a story, with causes and what to do.",
    epilog="Example:  hotslot logs explain hotslot.log\n\nNext:  docs/how-to/read-the-logs.md explains single lines.",
)
app.add_typer(
    alerts.app,
    name="alerts",
    help="Print alert rules and a dashboard; write runbooks.",
    epilog="Example:  hotslot alerts rules > hotslot.rules.yml\n\nNext:  docs/how-to/watch.md sets it up.",
)


app.command(epilog=doctor.EXAMPLE)(doctor.doctor)
app.command("alert-relay", epilog=alert_relay.EXAMPLE)(alert_relay.alert_relay)


@app.callback(invoke_without_command=True)
def hotslot(
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.", show_default=False)] = False,
) -> None:
    """Serve ModelScope models over gRPC, and update them while they serve.

    A new model never costs a request; a bad model never stays.
    """
    if show_version:
        try:
            print_text(f"hotslot {version('hotslot')}")
        except PackageNotFoundError:
            print_text("hotslot (not installed, no version)")
        raise typer.Exit(ExitCode.DONE)


@app.command("healthcheck", context_settings=_PASSED_THROUGH)
def health_check(context: typer.Context) -> None:
    """Check the server's health once, like grpc_health_probe."""
    raise typer.Exit(healthcheck.check(context.args))
