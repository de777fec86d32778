"""A bundle brought in by hand: convert a published folder, then make it what a restart loads."""

from dataclasses import dataclass
from pathlib import Path

from cli.problems import CommandFailed
from common.bundle import (
    Bundle,
    BundleBroken,
    Committed,
    Origin,
    bundle_folder,
    read_bundle,
    read_committed,
    update_pointer,
)
from common.clock import SystemClock
from common.provenance import CONVERSION_CHECK, HubKind, HubPlace, Provenance, rfc3339
from common.sealing import Convert, ConvertLimits, find_source, run_convert
from updater.settings import JOURNAL_NAME


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
    place, now = HubPlace(HubKind.IMPORT, model), rfc3339(SystemClock().now())
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
