"""What an error of the file system means for what comes next."""

import errno

from updater.core.effects import Failed, FaultKind
from updater.core.ports import EffectFailed

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
