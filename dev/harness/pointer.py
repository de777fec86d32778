"""The committed pointer, written without an import or an updater."""

from pathlib import Path

from common.bundle import Bundle, Committed, Origin, update_pointer


def commit_bundle(state: Path, bundle: Bundle, model: str) -> None:
    """Make a restart load a bundle for a model, as an import does."""
    commit_row(state, Committed(model, bundle.bundle_digest, bundle.source_digest, bundle.revision, Origin.IMPORT))


def commit_row(state: Path, row: Committed) -> Committed | None:
    """Make a restart load this row for its model; returns the previous row."""
    return update_pointer(state, row.model, lambda _: row)
