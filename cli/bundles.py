"""`hotslot bundle …`: bring a model in by hand, and look at what is there. Works without a server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.output import BAD, DIM, GOOD, err, out, print_text, seconds, short, size, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import Settings, StateDir, read_settings, state_folder
from common.bundle import (
    CONVERSION_CHECK,
    Bundle,
    BundleBroken,
    Committed,
    HubKind,
    HubLocation,
    Origin,
    Provenance,
    bundle_folder,
    format_rfc3339,
    read_bundle,
    read_committed,
    update_pointer,
)
from common.clock import SystemClock
from common.sealing import PRECISIONS, Convert, ConvertLimits, find_source, run_convert
from common.settings import settings_path
from updater.settings import JOURNAL_NAME

NOT_SAID = "does not say: sealed by an older hotslot"
_KINDS = {
    HubKind.FOLDER.value: "a folder hub",
    HubKind.MODELSCOPE.value: "the hub at",
    HubKind.IMPORT.value: "by hand, with `hotslot bundle import`",
}


def came_from(kind: str, endpoint: str, model: str, revision: str, when: str) -> str:
    """One line for people.

    Args:
        kind: of the hub, as the bundle says.
        endpoint: its host; may be empty.
        model: as the hub calls it.
        revision: as the hub called it.
        when: it was fetched.
    """
    where = " ".join(part for part in (_KINDS.get(kind, kind), endpoint) if part)
    return f"{where}: {model} {revision}, fetched {when}"


def was_checked(checked: tuple[str, ...]) -> str:
    """The numbers of the list that it passed, without their names where they are many."""
    return ", ".join(checked) or "nothing"


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import found and did."""

    bundle: Bundle
    was_sealed: bool  # nothing had to be converted
    replaced: Committed | None  # what a restart would have loaded before; None if nothing
    is_new: bool  # the pointer was moved


def import_bundle(
    source: Path, state: Path, model: str, revision: str, precision: str, convert: Convert = run_convert
) -> Imported:
    """Seal a published folder and commit it for a model. The same again changes nothing.

    Args:
        source: folder of a revision.
        state: hotslot's own folder.
        model: name of the model; the rows of other models stay as they are.
        revision: for people.
        precision: of the stored weights.
        convert: does the conversion.

    Raises:
        ConversionRefused: the folder cannot become a bundle.
        BundleBroken: the committed pointer is there and malformed, or the bundle was deleted before it was committed.
        LockTimeout: another writer did not release the committed pointer in time.
        OSError: the state folder cannot be written.
    """
    read_committed(state)  # a malformed pointer fails before the work, not after it
    sealed_before = {folder.name for folder in bundle_folders(state)}
    # Nobody has run the list over it: a person vouches for it. What the conversion looks at was looked at.
    place, now = HubLocation(HubKind.IMPORT, model), format_rfc3339(SystemClock().now())
    provenance = Provenance(place, revision, fetched_at=now, verified_at="", checked=(CONVERSION_CHECK,))
    bundle = convert(source, state, revision, ConvertLimits(), precision, digest="", provenance=provenance)
    was_sealed = bundle_folder(state, bundle.bundle_digest).name in sealed_before

    def change(row: Committed | None) -> Committed:
        if row is not None and row.bundle_digest == bundle.bundle_digest:
            return row
        # Under the lock: the updater deletes bundles that no row names, and holds the same lock while it does.
        if not bundle_folder(state, bundle.bundle_digest).is_dir():
            raise BundleBroken("the bundle was deleted to free space before it was committed")
        return Committed(model, bundle.bundle_digest, bundle.source_digest, bundle.revision, Origin.IMPORT)

    replaced = update_pointer(state, model, change)
    is_new = replaced is None or replaced.bundle_digest != bundle.bundle_digest
    return Imported(bundle, was_sealed, replaced, is_new)


def refuse_if_kept(source: Path, state: Path, model: str, revision: str) -> None:
    """Raise if a model is the updater's already: its journal would put back what it has committed.

    What is there before the updater's journal knows of it is adopted; so the first import, and the same again, go on.

    Raises:
        CommandFailed: it says how to get the revision in instead.
        ConversionRefused: the folder is no revision.
        BundleBroken: the committed pointer is there and malformed.
    """
    before = read_committed(state).get(model)
    if before is None or not (state / JOURNAL_NAME).exists() or find_source(source).digest() == before.source_digest:
        return
    raise CommandFailed(
        f"the updater keeps {model} at {before.revision} and would put that back; publish this instead, with "
        f"`hotslot hub add {source} {revision}`: it is proven before it serves (`hotslot updates update {revision}` "
        f"takes what policy does not). To begin anew by hand, stop hotslot and move {state / JOURNAL_NAME} away: "
        "floor and quarantine are forgotten with it"
    )


def is_loadable(state: Path, model: str) -> bool:
    """Whether a restart finds a whole bundle for a model.

    Raises:
        BundleBroken: the committed pointer is there and malformed.
    """
    row = read_committed(state).get(model)
    if row is None:
        return False
    try:
        read_bundle(bundle_folder(state, row.bundle_digest))
    except BundleBroken:
        return False
    return True


def bundle_folders(state: Path) -> list[Path]:
    """Folders of all sealed bundles, sorted by name."""
    root = state / "bundles"
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


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
