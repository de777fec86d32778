"""`hotslot doctor`: looks at everything that can be wrong with an installation, and says what to do."""

import platform
import sys
from dataclasses import asdict
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.doctor_archive import Archive, choose_lines, find_secrets, redact_settings
from cli.doctor_checks import Finding, Level, check_machine, check_processes, check_settings
from cli.doctor_remote import ask_hubs, ask_server, ask_updater, read_metrics
from cli.endpoint import resolve_endpoint
from cli.logs import open_log
from cli.output import BAD, DIM, DOUBTFUL, GOOD, out, plain, print_json, print_text, text
from cli.problems import WronglyUsed
from cli.settings import AsJson, Config, Settings, read_settings
from common.clock import SystemClock
from common.settings import SettingsInvalid

EXAMPLE = """Example:  hotslot doctor

Example:  hotslot doctor --archive report.tar.gz --log hotslot.log

Exit codes: 0 nothing is wrong · 1 something is wrong (with --strict: or should be looked at) · 2 wrong settings"""
_STYLES = {Level.GOOD: GOOD, Level.DOUBTFUL: DOUBTFUL, Level.BAD: BAD, Level.UNKNOWN: DIM}
_PACKAGES = ("hotslot", "grpcio", "protobuf", "torch", "numpy", "pillow", "pydantic", "supervisor", "modelscope-hub")
_MAX_LOG_LINES = 1_000_000


def doctor(
    *,
    config: Config = None,
    archive: Annotated[
        Path | None,
        typer.Option("--archive", metavar="FILE", help="Write a report without secrets, pictures or texts."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="A log whose last lines go into the archive.")
    ] = None,
    hub: Annotated[bool, typer.Option("--hub/--no-hub", help="Whether the hubs are asked, read only.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also if something should be looked at.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at settings, processes, disk, memory, certificates, hubs, golden sets, clock and limits.

    Prints a table of what is wrong and what to do. Changes nothing. Run it as the
    user of hotslot, on its host.
    """
    if log is not None and archive is None:
        raise WronglyUsed("--log needs --archive")
    report: dict[str, object] = {}
    settings, findings = _examine(config, report, asks_hub=hub, archives=archive is not None)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    if archive is not None:
        names = _write(archive, settings, findings, report, log)
        print_text(f"{archive} has {', '.join(names)}; read it before you send it")
    bad = {Level.BAD, Level.DOUBTFUL} if strict else {Level.BAD}
    if settings is None:
        raise typer.Exit(2)
    if any(finding.level in bad for finding in findings):
        raise typer.Exit(1)


def _examine(
    config: Path | None, report: dict[str, object], *, asks_hub: bool, archives: bool
) -> tuple[Settings | None, list[Finding]]:
    """All findings; answers of the processes go into `report`."""
    now = SystemClock().now()
    try:
        settings = read_settings(config)
    except SettingsInvalid as error:
        return None, list(check_settings(error))
    findings = [*check_machine(settings, now), *check_processes(settings, now)]
    runs = {finding.found.split()[1] for finding in findings if "runs as process" in finding.found}
    if "server" in runs:
        status, found = ask_server(resolve_endpoint())
        findings += found
        report["status.json"] = None if status is None else {"server": plain(status.server), **plain(status.models)}
    if "updater" in runs:
        updates, found = ask_updater(settings)
        findings += found
        report["updates.json"] = None if updates is None else plain(updates)
    if asks_hub:
        findings += ask_hubs(settings)
    if archives:
        report |= {f"metrics-{name}.txt": content for name, content in read_metrics(settings)}
    return settings, findings


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.level]
        table.add_row(text((finding.level.value, style)), finding.area, text(finding.found), text(finding.action))
    out.print(table)
    wrong = sum(finding.level is Level.BAD for finding in findings)
    doubtful = sum(finding.level is Level.DOUBTFUL for finding in findings)
    print_text(f"\n{wrong} wrong, {doubtful} to look at, {len(findings)} checked")


def _write(
    path: Path, settings: Settings | None, findings: list[Finding], report: dict[str, object], log: Path | None
) -> list[str]:
    secrets = () if settings is None else find_secrets(settings)
    archive = Archive(secrets, SystemClock().now())
    archive.add("findings.json", [asdict(finding) for finding in findings])
    archive.add("versions.json", _versions())
    if settings is not None:
        archive.add("settings.json", redact_settings(settings.model_dump(mode="json")))
    for name, content in report.items():
        if content is not None:
            archive.add(name, content)
    if log is not None:
        with open_log(log) as lines:
            archive.add("log.jsonl", choose_lines(islice(lines, _MAX_LOG_LINES)))
    return archive.write(path)


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "system": platform.platform(), "libc": " ".join(platform.libc_ver())}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
