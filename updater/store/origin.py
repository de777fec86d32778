"""Where staged files came from, written beside them while they are fetched."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from common.bundle import BundleBroken, HubPlace, Provenance, bundle_folder, place_of, read_bundle, rfc3339
from common.durable import read_bounded
from updater.core.checks import CHECKS, STATE_FOLDER, WEIGHTS

_MAX_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Origin:
    """Where, under which name, and when."""

    place: HubPlace
    revision: str  # as the hub calls it
    fetched_at: datetime


def origin_bytes(origin: Origin) -> bytes:
    """As it is written."""
    row = {"place": asdict(origin.place), "revision": origin.revision, "fetched_at": origin.fetched_at.isoformat()}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read_origin(path: Path) -> Origin | None:
    """What `origin_bytes` wrote; None if it is not there, or not whole: it decides nothing."""
    try:
        row = json.loads(read_bounded(path, _MAX_BYTES))
        return Origin(place_of(row["place"]), str(row["revision"]), datetime.fromisoformat(row["fetched_at"]))
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return None


def provenance_in(state: Path, bundle_digest: str) -> Provenance | None:
    """What a sealed bundle says of where it came from; None if it is not there, or does not say. From any thread."""
    try:
        return read_bundle(bundle_folder(state, bundle_digest)).provenance
    except (BundleBroken, OSError):
        return None


def sealed_with(path: Path, passed: Sequence[str], now: datetime, known: Provenance | None) -> Provenance | None:
    """What a bundle will say of itself, once it is converted.

    Args:
        path: of what `origin_bytes` wrote.
        passed: titles of the numbers that were looked at.
        now: of the wall clock.
        known: what an earlier conversion of the same source says; counts if there is no such file.

    Returns:
        None if nobody wrote down where the files came from.
    """
    # No store is made in a folder that fails number 1, and no bundle is sealed that fails number 14.
    titles = {*passed, STATE_FOLDER.title, WEIGHTS.title}
    checked = tuple(check.title for check in CHECKS if check.title in titles)
    origin = read_origin(path)
    if origin is None:
        return None if known is None else replace(known, verified_at=rfc3339(now), checked=checked)
    return Provenance(origin.place, origin.revision, rfc3339(origin.fetched_at), rfc3339(now), checked)
