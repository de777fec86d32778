"""The state folder: its layout, the check of its path, the origin of its files, and how disk errors are classified.

incoming/<update_id>/files/…         downloaded files of one update, nothing else
incoming/<update_id>/listing.json    what the hub listed of them
incoming/<update_id>/origin.json     where and when they were downloaded
sources/<digest>/                    source files of sealed bundles, kept for conversion by a newer build
bundles/<digest>/                    sealed bundles, read-only
staging/                             where a conversion writes
journal.db, journal.db-journal       the durable records and the audit trail, SQLite
journal.witness                      what must never be forgotten, once more
kernels/                             libraries that runners compiled for their processor
committed.json                       the committed pointer, written under the lock .committed.lock
committed.json.broken                the last malformed pointer that was replaced
"""

import errno
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from common.bundle import (
    BROKEN_POINTER_NAME,
    POINTER_LOCK,
    POINTER_NAME,
    BundleBroken,
    HubLocation,
    Provenance,
    bundle_folder,
    format_rfc3339,
    parse_hub_location,
    read_bundle,
)
from common.durable import read_bounded
from common.json_load import load_json
from common.paths import KERNELS_FOLDER, UPDATES_SOCKET, socket_path
from common.settings import Mistake, SettingsInvalid
from updater.core.checks import CHECKS, HASHES, STATE_FOLDER, WEIGHTS
from updater.core.ports import EffectFailed
from updater.settings import JOURNAL_NAME, WITNESS_NAME, UpdaterSettings

INCOMING, SOURCES = "incoming", "sources"
FILES_FOLDER, LISTING_NAME, ORIGIN_NAME = "files", "listing.json", "origin.json"
# What the updater creates in the state folder, apart from the run folder, and what runners compile.
STATE_ENTRIES = frozenset(
    {
        *(INCOMING, SOURCES, "bundles", "staging", POINTER_NAME, POINTER_LOCK, BROKEN_POINTER_NAME),
        KERNELS_FOLDER,
        *(JOURNAL_NAME, f"{JOURNAL_NAME}-journal", WITNESS_NAME),
        *(f"{name}.replaced" for name in (JOURNAL_NAME, f"{JOURNAL_NAME}-journal", WITNESS_NAME)),  # by a restore
    }
)
_TRUSTED_NAMES = ("damo", "iic")
_MAX_FETCH_RECORD_BYTES = 16 << 10
_DENIED = {errno.EROFS: "READ_ONLY", errno.EACCES: "PERMISSION_DENIED", errno.EPERM: "PERMISSION_DENIED"}


class UnsafeStateFolder(ValueError):
    """The path of the state folder would make the hub's library run code of a model.

    Attributes:
        reason: for machines.
    """

    reason = STATE_FOLDER.reasons[0]


def check_state_dir(settings: UpdaterSettings) -> None:
    """Check the path of the state folder, before anything is written to it.

    Raises:
        SettingsInvalid: it is too long for a Unix domain socket, or check 1 fails.
    """
    socket_path(settings.state_dir, UPDATES_SOCKET)
    try:
        check_state_path(settings.state_dir)
    except UnsafeStateFolder as error:
        raise SettingsInvalid([Mistake("state_dir", str(error))]) from error


def check_state_path(state: Path) -> None:
    """Run check 1: the hub's library trusts a model by the names in its path.

    Raises:
        UnsafeStateFolder: a part of the path is such a name.
    """
    parts = [part.split("--", 1)[0] for part in state.absolute().parts]
    found = next((part for part in parts if part in _TRUSTED_NAMES), None)
    if found:
        message = (
            f"state_dir must not contain a folder named {found!r}: the hub's library would run code of models there"
        )
        raise UnsafeStateFolder(f"check {STATE_FOLDER.title}: {message}")


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """Where and when the files of one update were downloaded."""

    place: HubLocation
    revision: str  # as named by the hub
    fetched_at: datetime
    computed: tuple[str, ...] = ()  # files that were listed without a hash


def encode_fetch_record(record: FetchRecord) -> bytes:
    """The content of origin.json."""
    row = {**asdict(record), "fetched_at": record.fetched_at.isoformat()}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def read_fetch_record(path: Path) -> FetchRecord | None:
    """Read origin.json; None if it is missing or damaged, since no decision depends on it."""
    try:
        row = load_json(read_bounded(path, _MAX_FETCH_RECORD_BYTES))
        return FetchRecord(
            parse_hub_location(row["place"]),
            str(row["revision"]),
            datetime.fromisoformat(row["fetched_at"]),
            tuple(map(str, row.get("computed", ()))),
        )
    except (OSError, KeyError, TypeError, ValueError):
        return None


def read_provenance(state: Path, bundle_digest: str) -> Provenance | None:
    """The provenance in a sealed bundle; None if the bundle is missing or has none. From any thread."""
    try:
        return read_bundle(bundle_folder(state, bundle_digest)).provenance
    except (BundleBroken, OSError):
        return None


def build_provenance(path: Path, passed: Sequence[str], now: datetime, known: Provenance | None) -> Provenance | None:
    """The provenance to seal into a bundle.

    Args:
        path: of origin.json.
        passed: titles of the checks that passed.
        now: by the wall clock.
        known: from an earlier bundle of the same source; used if origin.json is missing.

    Returns:
        None if the origin of the files is unknown.
    """
    # Check 1 passed before the store was created; a bundle that fails check 14 is never sealed.
    titles = {*passed, STATE_FOLDER.title, WEIGHTS.title}
    record = read_fetch_record(path)
    if record is not None and record.computed:  # there was nothing to compare with
        titles.discard(HASHES.title)
    checked = tuple(check.title for check in CHECKS if check.title in titles)
    if record is None:
        return None if known is None else replace(known, verified_at=format_rfc3339(now), checked=checked)
    return Provenance(record.place, record.revision, format_rfc3339(record.fetched_at), format_rfc3339(now), checked)


def classify_disk_error(error: OSError, what: str) -> EffectFailed:
    """The outcome of a file system error, with advice; its message shows no path.

    Args:
        error: raised by the file system.
        what: what failed, as the beginning of the message.
    """
    words = (error.strerror or "it failed").lower()
    if error.errno == errno.ENOSPC:
        return EffectFailed.transient("DISK_FULL", f"{what}: {words}; free some space")
    if error.errno == errno.EDQUOT:
        return EffectFailed.transient("QUOTA_EXCEEDED", f"{what}: {words}; raise the quota or free some space")
    if error.errno in _DENIED:
        return EffectFailed.denied(_DENIED[error.errno], f"{what}: {words}; fix the permissions of the state folder")
    return EffectFailed.transient("IO_FAILED", f"{what}: {words}")
