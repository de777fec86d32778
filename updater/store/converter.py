"""The conversion as a port: the shipped one in a child with limits, and what its refusals mean."""

from dataclasses import replace
from pathlib import Path

from common.bundle import Provenance, is_digest, source_digest
from common.sealing import PRECISIONS, ConversionRefused, Convert, ConvertLimits, run_convert
from common.source import read_listing_file
from updater.core import checks
from updater.core.checks import by_reason, refused
from updater.core.results import FaultKind
from updater.store.faults import disk_failed, transient
from updater.store.staging import LISTING_NAME

# What befell the child says nothing about the revision.
_BLAMELESS = frozenset({"CONVERT_FAILED", "IO_FAILED", "SOURCE_UNREADABLE", "TIME_LIMIT"})


class ChildConverter:
    """Converts into one state folder."""

    def __init__(self, state: Path, limits: ConvertLimits, convert: Convert = run_convert) -> None:
        """Prepare; `limits.timeout_seconds` is lowered to each call's deadline."""
        self._state = state
        self._limits = limits
        self._convert = convert

    def seal(
        self, folder: Path, revision: str, precision: str, deadline_seconds: float, provenance: Provenance | None
    ) -> str:
        """Convert and seal; returns the bundle digest; at once if it is sealed already."""
        limits = replace(self._limits, timeout_seconds=min(deadline_seconds, self._limits.timeout_seconds))
        stored = precision if precision in PRECISIONS else PRECISIONS[0]  # a runner casts
        try:
            verified = _verified(folder)
            bundle = self._convert(
                folder, self._state, revision, limits, stored, digest=verified, provenance=provenance
            )
        except ConversionRefused as error:
            if error.reason in checks.UNCHANGED.reasons:
                raise refused(checks.UNCHANGED, error.reason, str(error), FaultKind.TRANSIENT) from error
            if error.reason in _BLAMELESS:
                raise transient(error.reason, str(error)) from error
            raise by_reason(error.reason, str(error)) from error  # check 14
        except OSError as error:
            raise disk_failed(error, "the bundle cannot be written") from error
        return bundle.bundle_digest


def _verified(folder: Path) -> str:
    """Source digest of what was verified in this folder, which stands beside the files or is their folder's name.

    Empty if neither says it.
    """
    kept = folder.name.replace("sha256-", "sha256:", 1)
    if is_digest(kept):
        return kept
    listing = folder.parent / LISTING_NAME
    return source_digest(read_listing_file(listing)) if listing.exists() else ""
