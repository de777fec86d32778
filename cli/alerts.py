"""`hotslot alerts …`: rules for Prometheus, their runbooks, and a dashboard for Grafana. Works without a server."""

from pathlib import Path
from typing import Annotated

import typer

from cli.config import list_settings
from cli.monitoring.dashboard import render_dashboard
from cli.monitoring.relay import metric_catalog as relay
from cli.monitoring.rules_file import DEFAULT_BASE, render_rules
from cli.monitoring.runbooks import SettingFact, render_runbooks
from cli.output import out, print_text
from cli.problems import CommandFailed
from common.metric_catalog import MetricCatalog
from inference.server import metric_catalog as server
from updater import metric_catalog as updater

app = typer.Typer(no_args_is_help=True)
DASHBOARD = "deploy/grafana/hotslot.json"
RULES = "deploy/prometheus/hotslot.rules.yml"
CATALOGS: tuple[MetricCatalog, ...] = (server.CATALOG, updater.CATALOG, relay.CATALOG)


@app.callback()
def alerts() -> None:
    """Alerts: rules for Prometheus, their runbooks, and a dashboard."""


@app.command(
    epilog=f"Example:  hotslot alerts rules > {RULES}\n\nNext:  `promtool check rules` reads them as Prometheus does."
)
def rules(
    *,
    base: Annotated[str, typer.Option(metavar="URL", help="URL prefix of the runbook links.")] = DEFAULT_BASE,
) -> None:
    """Print recording rules and alerts for Prometheus."""
    out.print(render_rules(base), end="", markup=False, soft_wrap=True)


@app.command(
    epilog=f"Example:  hotslot alerts dashboard > {DASHBOARD}\n\nNext:  import the file in Grafana, or provision it."
)
def dashboard() -> None:
    """Print the dashboard for Grafana."""
    out.print(render_dashboard(), end="", markup=False, soft_wrap=True)


@app.command(epilog="Example:  hotslot alerts runbooks docs/runbooks\n\nNext:  `hotslot alerts rules --base URL`.")
def runbooks(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write to; every other .md file in it is deleted.")
    ],
) -> None:
    """Write a runbook page for each alert.

    Each has the meaning, the first command, causes with what to do, and what the
    code says about the metrics and settings.
    """
    pages = make_pages()
    folder.mkdir(parents=True, exist_ok=True)
    strange = [path.name for path in folder.iterdir() if path.suffix != ".md"]
    if strange:
        raise CommandFailed(f"{folder} has other files ({strange[0]}): name a folder for runbooks alone")
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    print_text(f"{len(pages)} pages")


def make_pages() -> dict[str, str]:
    """File name → content of every runbook page."""
    facts = {row.key: SettingFact(row.default, row.meaning) for row in list_settings()}
    return render_runbooks(CATALOGS, facts)
