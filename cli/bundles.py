"""`hotslot bundle …`: explain and import a model by hand; list and show bundles. Works without a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.clients import only_model_for
from cli.explain import explain
from cli.golden_check import golden_check, golden_of
from cli.model_folder import check_model_folder
from cli.output import BAD, DIM, DOUBTFUL, GOOD, err, out, print_text, seconds, short, size, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import StateDir, read_settings
from cli.state_folder import state_folder
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
from common.paths import keep_owner
from common.sealing import Convert, ConvertLimits, run_convert
from common.settings import settings_path
from common.source import PRECISIONS, find_source
from updater.settings import JOURNAL_NAME

NO_PROVENANCE = "unknown: sealed by an older hotslot"
_KINDS = {
    HubKind.FOLDER.value: "a folder hub",
    HubKind.MODELSCOPE.value: "the hub",
    HubKind.IMPORT.value: "`hotslot bundle import`",
}


def format_origin(kind: str, endpoint: str, model: str, revision: str, when: str) -> str:
    """The origin of a bundle in one line.

    Args:
        kind: of the hub, a value of HubKind.
        endpoint: host of the hub; may be empty.
        model: its name on the hub.
        revision: its name on the hub.
        when: time of the transfer.
    """
    where = " ".join(part for part in (_KINDS.get(kind, kind), endpoint) if part)
    return f"{where}: {model} {revision}, fetched {when}"


def format_checks(checked: tuple[str, ...]) -> str:
    """The checks that a bundle has passed, separated by commas."""
    return ", ".join(checked) or "none"


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of `import_bundle`."""

    bundle: Bundle
    was_sealed: bool  # the bundle existed already
    replaced: Committed | None  # the row that it replaced, if there was one
    is_new: bool  # whether the committed pointer was changed


def import_bundle(
    source: Path,
    state: Path,
    model: str,
    revision: str,
    precision: str,
    convert: Convert = run_convert,
    check: Callable[[Bundle, Committed | None], None] = lambda _bundle, _committed: None,
) -> ImportResult:
    """Convert a published folder and commit it for a model; importing the same again changes nothing.

    Args:
        source: folder of a revision.
        state: the state folder.
        model: name of the model.
        revision: its name, for people.
        precision: of the stored weights.
        convert: converts the folder.
        check: called with the sealed bundle and the committed row before the pointer changes; raises to stop that.

    Raises:
        ConversionRefused: the folder cannot be converted.
        BundleBroken: the committed pointer is malformed, or the bundle was deleted before it was committed.
        LockTimeout: another writer did not release the committed pointer in time.
        OSError: the state folder cannot be written.
    """
    read_committed(state)  # a malformed pointer must fail before the conversion
    sealed_before = {folder.name for folder in bundle_folders(state)}
    # The checks of docs/verification.md do not run here, except those that the conversion makes.
    place, now = HubLocation(HubKind.IMPORT, model), format_rfc3339(SystemClock().now())
    provenance = Provenance(place, revision, fetched_at=now, verified_at="", checked=(CONVERSION_CHECK,))
    bundle = convert(source, state, revision, ConvertLimits(), precision, digest="", provenance=provenance)
    was_sealed = bundle_folder(state, bundle.bundle_digest).name in sealed_before
    committed = read_committed(state).get(model)
    if committed is None or committed.bundle_digest != bundle.bundle_digest:
        check(bundle, committed)

    def change(row: Committed | None) -> Committed:
        if row is not None and row.bundle_digest == bundle.bundle_digest:
            return row
        # Under the lock: the updater holds it while it drops bundles that no row names.
        if not bundle_folder(state, bundle.bundle_digest).is_dir():
            raise BundleBroken("the bundle was deleted to free space before it was committed")
        return Committed(model, bundle.bundle_digest, bundle.source_digest, bundle.revision, Origin.IMPORT)

    replaced = update_pointer(state, model, change)
    is_new = replaced is None or replaced.bundle_digest != bundle.bundle_digest
    return ImportResult(bundle, was_sealed, replaced, is_new)


def check_not_managed(source: Path, state: Path, model: str, revision: str) -> None:
    """Check that the updater does not manage a model yet: it would restore the revision in its journal.

    The first import of a model is allowed, since the updater adopts it, and so is importing the same again.

    Raises:
        CommandFailed: the updater manages it; the message says how to install the revision instead.
        ConversionRefused: the folder is not a revision.
        BundleBroken: the committed pointer is malformed.
    """
    before = read_committed(state).get(model)
    if before is None or not (state / JOURNAL_NAME).exists() or find_source(source).digest() == before.source_digest:
        return
    raise CommandFailed(
        f"the updater manages {model} and would restore {before.revision}; publish it instead with "
        f"`hotslot hub add {source} {revision}`; it is tested before it serves (`hotslot updates update {revision}` "
        f"if the update policy skips it). To import by hand, stop hotslot and move {state / JOURNAL_NAME} away; this "
        "also deletes the minimal version and the quarantine"
    )


def is_loadable(state: Path, model: str) -> bool:
    """Whether a complete bundle is committed for a model.

    Raises:
        BundleBroken: the committed pointer is malformed.
        OSError: the committed pointer cannot be read now.
    """
    row = read_committed(state).get(model)
    if row is None:
        return False
    try:
        read_bundle(bundle_folder(state, row.bundle_digest))
    except (BundleBroken, OSError):
        return False
    return True


def bundle_folders(state: Path) -> list[Path]:
    """The folders of all sealed bundles, sorted by name."""
    root = state / "bundles"
    # A name that begins with a dot is of a bundle that is being deleted or put back.
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".") if root.is_dir() else []


app = typer.Typer(no_args_is_help=True)
MIN_DIGEST_DIGITS = 4
app.command(
    epilog="Example:  hotslot bundle explain examples/shapes/v1.0.0\n\n"
    "Next:  change what is refused, then `hotslot bundle import DIR`."
)(explain)


@app.command(
    "import",
    epilog="Example:  hotslot bundle import examples/shapes/v1.0.0 --model shapes\n\n"
    "Next:  `hotslot serve` loads it; later revisions are published with `hotslot hub add`.",
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder of a revision, as published on the hub.", callback=check_model_folder
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Default: the only model of its task in hotslot.toml.",
            show_default=False,
        ),
    ] = "",
    revision: Annotated[
        str,
        typer.Option(metavar="REV", help="Name of the revision. Default: the name of the folder.", show_default=False),
    ] = "",
    precision: Annotated[
        str, typer.Option(help=f"Number format of the stored weights: {' or '.join(PRECISIONS)}.")
    ] = PRECISIONS[0],
    force: Annotated[bool, typer.Option("--force", help="Import it even if the golden set speaks against it.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Convert a published folder; the server loads it at its next start.

    Importing the same folder again changes nothing, and seals a bundle again that
    is missing. Another revision of a model that the updater manages already cannot
    be imported. If the settings name a golden set for the model, the new bundle
    answers it first, and is imported only if it is not worse than the committed
    one.
    """
    if precision not in PRECISIONS:
        raise WronglyUsed(f"--precision must be {' or '.join(PRECISIONS)}, not {precision!r}")
    state = state_folder(state_dir, may_be_new=True)
    name = model or only_model_for(source)
    called = revision or source.resolve().name
    if _is_managed(name):
        check_not_managed(source, state, name, called)
    started = SystemClock().monotonic()
    check = golden_check(state, golden_of(name), force=force)
    with keep_owner(state), err.status(text(f"importing {source} as {name}")):
        done = import_bundle(source, state, name, called, precision, check=check)
    print_import(name, done, SystemClock().monotonic() - started)


@app.command("list", epilog="Example:  hotslot bundle list\n\nNext:  `hotslot bundle show DIGEST` shows one of them.")
def list_(*, state_dir: StateDir = None) -> None:
    """List the sealed bundles, and the models for which they are committed."""
    state = state_folder(state_dir)
    committed = read_committed(state)
    folders = bundle_folders(state)
    if not folders:
        print_text(f"{state} has no bundle yet; import one with `hotslot bundle import DIR`")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("digest", "revision", "engine", "precision", "size", "committed for"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for folder in folders:
        try:
            bundle = read_bundle(folder)
        except (BundleBroken, OSError) as error:
            table.add_row(short(folder.name.replace("-", ":", 1)), text((f"broken: {error}", BAD)))
            continue
        models = _models_of(bundle, committed)
        shown = (bundle.revision, bundle.engine, bundle.precision, size(sum(file.size for file in bundle.files)))
        table.add_row(short(bundle.bundle_digest), *map(text, shown), text((", ".join(models), GOOD)))
    out.print(table)


@app.command(
    epilog="Example:  hotslot bundle show 3f2a91bc\n\nNext:  `hotslot status` shows which bundle each slot has loaded."
)
def show(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="Bundle digest, or its first digits.")],
    *,
    state_dir: StateDir = None,
) -> None:
    """Show one sealed bundle: digests, revision, origin, checks and files."""
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
    print_notes(bundle.notes)


def _provenance(bundle: Bundle) -> dict[str, str]:
    """The origin of a bundle and the checks that it has passed."""
    row = bundle.provenance
    if row is None:
        return {"from": NO_PROVENANCE}
    came = format_origin(row.place.kind.value, row.place.endpoint, row.place.model, row.revision, row.fetched_at)
    when = f"{row.verified_at}: " if row.verified_at else ""
    return {"from": came, "checked": when + format_checks(row.checked)}


def find_bundle(state: Path, digest: str) -> Path:
    """The folder of the sealed bundle whose digest begins with `digest`.

    Raises:
        CommandFailed: there is none, or several.
    """
    digits = digest.lower().removeprefix("sha256:").removeprefix("sha256-")
    if len(digits) < MIN_DIGEST_DIGITS:
        raise WronglyUsed(f"give at least {MIN_DIGEST_DIGITS} digits of the digest; `hotslot bundle list` shows them")
    found = [folder for folder in bundle_folders(state) if folder.name.startswith(f"sha256-{digits}")]
    if len(found) != 1:
        number = "no bundle" if not found else f"{len(found)} bundles"
        raise CommandFailed(f"{number} in {state} begin with {digits}; `hotslot bundle list` shows all")
    return found[0]


def print_import(model: str, done: ImportResult, took_seconds: float) -> None:
    """Print the result of an import, and what to do next."""
    bundle = done.bundle
    name = f"{bundle.revision} {short(bundle.bundle_digest)}"
    if not done.is_new:
        print_text(f"{model} is already {name}; nothing to do")
        return
    how = "converted earlier" if done.was_sealed else f"converted in {seconds(took_seconds)}"
    before = f" (before: {done.replaced.revision} {short(done.replaced.bundle_digest)})" if done.replaced else ""
    print_text((model, "bold"), " is now ", (name, GOOD), f", {how}{before}; the server loads it at its next start")
    print_notes(bundle.notes)
    if settings_path().is_file() and model not in {one.name for one in read_settings().models}:
        print_text((f"{settings_path()} has no [[models]] named {model}; add it, or the model is not served", BAD))


def print_notes(notes: Sequence[str]) -> None:
    """Print what was ignored in the published files, or read otherwise than expected."""
    for note in notes:
        print_text(("note: ", DOUBTFUL), note)


def _is_managed(model: str) -> bool:
    """Whether the updater manages a model by the settings; true if there is no settings file."""
    return not settings_path().is_file() or model in read_settings().updater.models


def _models_of(bundle: Bundle, committed: dict[str, Committed]) -> list[str]:
    rows = [row for row in committed.values() if row.bundle_digest == bundle.bundle_digest]
    return [f"{row.model} ({row.origin.value})" for row in rows]
