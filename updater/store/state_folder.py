"""What can be wrong with the name of the state folder."""

import errno
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from common.bundle import (
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
from common.paths import UPDATES_SOCKET, socket_path
from common.settings import Mistake, SettingsInvalid
from updater.core import checks
from updater.core.checks import CHECKS, STATE_FOLDER, WEIGHTS
from updater.core.effects import Failed, FaultKind
from updater.core.ports import EffectFailed
from updater.settings import JOURNAL_NAME, UpdaterSettings

INCOMING, SOURCES = "incoming", "sources"
# All names that the updater leaves in the state folder, beside the run folder.
STATE_ENTRIES = frozenset(
    {INCOMING, SOURCES, "bundles", "staging", POINTER_NAME, POINTER_LOCK, JOURNAL_NAME, f"{JOURNAL_NAME}-journal"}
)
_TRUSTED_NAMES = ("damo", "iic")


class FolderTrusted(ValueError):
    """The state folder has a name by which the hub's own library would run a model's code.

    Attributes:
        reason: for machines.
    """

    reason = checks.STATE_FOLDER.reasons[0]


def refuse_trusted_names(state: Path) -> None:
    """Fail closed where a folder's name alone would make the hub's library trust code.

    Raises:
        FolderTrusted: some part of the path is such a name.
    """
    parts = [part.split("--", 1)[0] for part in state.absolute().parts]
    found = next((part for part in parts if part in _TRUSTED_NAMES), None)
    if found:
        message = f"no part of state_dir may be called {found!r}: code of models in it would be trusted"
        raise FolderTrusted(f"check {checks.STATE_FOLDER.title}: {message}")


def check_paths(settings: UpdaterSettings) -> None:
    """What can be wrong with the state folder's name.

    Raises:
        SettingsInvalid: it is too long for a socket, or would make the hub's library trust code.
    """
    socket_path(settings.state_dir, UPDATES_SOCKET)
    try:
        refuse_trusted_names(settings.state_dir.absolute())
    except FolderTrusted as error:
        raise SettingsInvalid([Mistake("state_dir", str(error))]) from error


_DENIED = {errno.EROFS: "READ_ONLY", errno.EACCES: "PERMISSION_DENIED", errno.EPERM: "PERMISSION_DENIED"}


def permanent(reason: str, message: str) -> EffectFailed:
    """The revision's fault: it will fail again."""
    return EffectFailed(Failed(FaultKind.PERMANENT, reason, message))


def transient(reason: str, message: str) -> EffectFailed:
    """The same may succeed later."""
    return EffectFailed(Failed(FaultKind.TRANSIENT, reason, message))


def disk_failed(error: OSError, what: str) -> EffectFailed:
    """Our own disk did not do it: full, failing, or not writable for us. Shows no path."""
    words = (error.strerror or "it failed").lower()
    if error.errno == errno.ENOSPC:
        return transient("DISK_FULL", f"{what}: {words}; free some space")
    if error.errno == errno.EDQUOT:
        return transient("QUOTA_EXCEEDED", f"{what}: {words}; raise the quota or free some space")
    if error.errno in _DENIED:
        sentence = f"{what}: {words}; mend the folder's permissions"
        return EffectFailed(Failed(FaultKind.DENIED, _DENIED[error.errno], sentence))
    return transient("IO_FAILED", f"{what}: {words}")


_MAX_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Origin:
    """Where, under which name, and when."""

    place: HubLocation
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
        return Origin(parse_hub_location(row["place"]), str(row["revision"]), datetime.fromisoformat(row["fetched_at"]))
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
        return None if known is None else replace(known, verified_at=format_rfc3339(now), checked=checked)
    return Provenance(origin.place, origin.revision, format_rfc3339(origin.fetched_at), format_rfc3339(now), checked)
