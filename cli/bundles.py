"""`hotslot bundle …`: bring a model in by hand, and look at what is there. Works without a server."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.console import BAD, DIM, GOOD, err, out, print_text, seconds, short, size, text
from cli.importing import Imported, bundle_folders, import_bundle, refuse_if_kept
from cli.options import StateDir
from cli.problems import CommandFailed, WronglyUsed
from cli.provenance_view import NOT_SAID, came_from, was_checked
from cli.settings import Settings, read_settings, state_folder
from common.bundle import Bundle, BundleBroken, Committed, read_bundle, read_committed
from common.clock import SystemClock
from common.sealing import PRECISIONS, find_source
from common.settings import settings_path

app = typer.Typer(no_args_is_help=True)
MIN_DIGEST_DIGITS = 4


@app.command("import", epilog="Example:  hotslot bundle import examples/shapes/v1.0.0 --model shapes")
def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of a revision, as it was published.", exists=True, file_okay=False),
    ],
    *,
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="NAME", help="Default: the only model of that task.", show_default=False),
    ] = "",
    revision: Annotated[
        str, typer.Option(metavar="REV", help="For people. Default: the folder's name.", show_default=False)
    ] = "",
    precision: Annotated[str, typer.Option(help=f"Of the stored weights: {' or '.join(PRECISIONS)}.")] = PRECISIONS[0],
    state_dir: StateDir = None,
) -> None:
    """Convert a published folder and make it what the server loads at its next start.

    The same folder again changes nothing. What the updater keeps up to date is not replaced by hand.
    """
    if precision not in PRECISIONS:
        raise WronglyUsed(f"--precision is {' or '.join(PRECISIONS)}, not {precision!r}")
    state = state_folder(state_dir)
    name = model or _only_model_for(source)
    called = revision or source.resolve().name
    if _is_kept(name):
        refuse_if_kept(source, state, name, called)
    clock = SystemClock()
    started = clock.monotonic()
    with err.status(text(f"importing {source} as {name}: checking and converting")):
        done = import_bundle(source, state, name, called, precision)
    tell_import(name, done, clock.monotonic() - started)


@app.command("list", epilog="Example:  hotslot bundle list")
def list_(*, state_dir: StateDir = None) -> None:
    """List the sealed bundles, and which of them a restart loads."""
    state = state_folder(state_dir)
    committed = read_committed(state)
    folders = bundle_folders(state)
    if not folders:
        print_text(f"no bundle in {state} yet; bring one in with `hotslot bundle import DIR`")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("digest", "revision", "engine", "precision", "size", "committed for"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for folder in folders:
        try:
            bundle = read_bundle(folder)
        except BundleBroken as error:
            table.add_row(short(folder.name.replace("-", ":", 1)), text((f"broken: {error}", BAD)))
            continue
        models = _models_of(bundle, committed)
        shown = (bundle.revision, bundle.engine, bundle.precision, size(sum(file.size for file in bundle.files)))
        table.add_row(short(bundle.bundle_digest), *map(text, shown), text((", ".join(models), GOOD)))
    out.print(table)


@app.command(epilog="Example:  hotslot bundle show 3f2a91bc")
def show(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="Bundle digest, or its first digits.")],
    *,
    state_dir: StateDir = None,
) -> None:
    """Show one sealed bundle with its files."""
    state = state_folder(state_dir)
    bundle = read_bundle(find_bundle(state, digest))
    rows = {
        "bundle": bundle.bundle_digest,
        "source": bundle.source_digest,
        "revision": bundle.revision,
        "engine": f"{bundle.engine}, layout {bundle.converter}",
        "task": bundle.task,
        "precision": bundle.precision,
        "committed": ", ".join(_models_of(bundle, read_committed(state))) or "for no model",
    }
    for key, value in {**rows, **_provenance(bundle)}.items():
        print_text((f"{key:<11}", DIM), value)
    for position, file in enumerate(bundle.files):
        print_text((f"{'' if position else 'files':<11}", DIM), f"{file.name}  {size(file.size)}")


def _provenance(bundle: Bundle) -> dict[str, str]:
    """Where it came from, and what it passed."""
    row = bundle.provenance
    if row is None:
        return {"from": NOT_SAID}
    came = came_from(row.place.kind.value, row.place.endpoint, row.place.model, row.revision, row.fetched_at)
    when = f"{row.verified_at}: " if row.verified_at else ""
    return {"from": came, "checked": when + was_checked(row.checked)}


def find_bundle(state: Path, digest: str) -> Path:
    """The folder of the one sealed bundle whose digest begins so.

    Raises:
        CommandFailed: none or several do.
    """
    digits = digest.lower().removeprefix("sha256:").removeprefix("sha256-")
    if len(digits) < MIN_DIGEST_DIGITS:
        raise WronglyUsed(f"give at least {MIN_DIGEST_DIGITS} digits of the digest; `hotslot bundle list` shows them")
    found = [folder for folder in bundle_folders(state) if folder.name.startswith(f"sha256-{digits}")]
    if len(found) != 1:
        number = "no bundle" if not found else f"{len(found)} bundles"
        raise CommandFailed(f"{number} in {state} begin with {digits}; `hotslot bundle list` shows all")
    return found[0]


def tell_import(model: str, done: Imported, took_seconds: float) -> None:
    """Say what an import did, and what follows from it."""
    bundle = done.bundle
    name = f"{bundle.revision} {short(bundle.bundle_digest)}"
    if not done.is_new:
        print_text(f"{model} is {name} already; nothing to do")
        return
    how = "was sealed already" if done.was_sealed else f"converted in {seconds(took_seconds)}"
    before = f" (before: {done.replaced.revision} {short(done.replaced.bundle_digest)})" if done.replaced else ""
    print_text((model, "bold"), " is now ", (name, GOOD), f", {how}{before}; the server loads it at its next start")
    if settings_path().is_file() and model not in {one.name for one in read_settings().models}:
        print_text((f"no [[models]] named {model} in {settings_path()}: add one, or it will not be served", BAD))


def _only_model_for(source: Path) -> str:
    """The configured model of the source's task, if there is exactly one.

    Raises:
        WronglyUsed: there is none, or there are several.
    """
    task = find_source(source).engine.task
    settings: Settings | None = read_settings() if settings_path().is_file() else None
    names = [model.name for model in settings.models if model.task is task] if settings else []
    if len(names) != 1:
        known = (
            f"{settings_path()} has {', '.join(names) or 'none'} for {task.value}" if settings else "no settings file"
        )
        raise WronglyUsed(f"name the model with --model ({known})")
    return names[0]


def _is_kept(model: str) -> bool:
    """Whether the settings have the updater keep a model up to date; assumed where there are none."""
    return not settings_path().is_file() or model in read_settings().updater.models


def _models_of(bundle: Bundle, committed: dict[str, Committed]) -> list[str]:
    rows = [row for row in committed.values() if row.bundle_digest == bundle.bundle_digest]
    return [f"{row.model} ({row.origin.value})" for row in rows]
