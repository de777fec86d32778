"""A runner's bond with the server: it ends when the server does, and only when the server says so."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def bind_to(parent: int) -> bool:
    """Die with the parent, whatever it dies of, and ignore what a terminal or a supervisor sends to the whole group.

    Args:
        parent: process id that the parent says it has.

    Returns:
        Whether the parent is still there; if not, nobody will ever speak with this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the parent-death signal cannot be set")
    # Asked after the signal is set: a parent that died before that is caught here.
    return os.getppid() == parent
