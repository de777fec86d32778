"""Adopts the processes whose parent has ended: forked runners, and the decoders of runners that have ended."""

import ctypes
import os
from collections.abc import Collection

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans(*, adopts: bool = True) -> None:
    """Make this process the parent of descendants whose parent ends (a "child subreaper"), or no longer.

    Raises:
        OSError: the system does not support it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot become a child subreaper")


def reap_orphans(known: Collection[int]) -> int:
    """Reap ended children that nothing else reaps; returns how many.

    Args:
        known: process ids of the children that are awaited elsewhere. One that has ended and is not reaped yet hides
            those after it until the next call.
    """
    reaped = 0
    try:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in known:
                break
            os.waitpid(ended.si_pid, os.WNOHANG)
            reaped += 1
    except ChildProcessError:
        pass  # there is no child
    return reaped
