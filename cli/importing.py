"""A bundle brought in by hand: convert a published folder, then make it what a restart loads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.bundle import Bundle, BundleBroken, Committed, Origin, bundle_folder, read_bundle, read_committed
from common.bundle import commit as move_pointer
from common.sealing import ConvertLimits, run_convert

# Source, state folder, revision, limits and precision → sealed bundle, at once if it is sealed already.
Converter = Callable[[Path, Path, str, ConvertLimits, str], Bundle]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import found and did."""

    bundle: Bundle
    was_sealed: bool  # nothing had to be converted
    replaced: Committed | None  # what a restart would have loaded before; None if nothing
    is_new: bool  # the pointer was moved


def import_bundle(
    source: Path, state: Path, model: str, revision: str, precision: str, convert: Converter = run_convert
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
        BundleBroken: the committed pointer is there and malformed.
        OSError: the state folder cannot be written.
    """
    committed = read_committed(state)
    sealed_before = {folder.name for folder in bundle_folders(state)}
    bundle = convert(source, state, revision, ConvertLimits(), precision)
    was_sealed = bundle_folder(state, bundle.bundle_digest).name in sealed_before
    replaced = committed.get(model)
    if replaced is not None and replaced.bundle_digest == bundle.bundle_digest:
        return Imported(bundle, was_sealed, replaced, is_new=False)
    row = Committed(model, bundle.bundle_digest, bundle.source_digest, bundle.revision, Origin.IMPORT)
    move_pointer(state, row)
    return Imported(bundle, was_sealed, replaced, is_new=True)


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
