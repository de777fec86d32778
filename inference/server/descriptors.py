"""File descriptors of the server: the limit, and how many of them connections of clients may take."""

import resource

MAX_DESCRIPTORS = 65536  # more is not useful, and some libraries loop over all of them
RESERVED = 256  # for runners, bundles, the control socket, health probes, metrics and log


def raise_limit(highest: int = MAX_DESCRIPTORS) -> int:
    """Raise the soft limit of open files to the hard one, at most to `highest`; returns the limit in effect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = highest if hard == resource.RLIM_INFINITY else min(highest, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return highest if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def max_connections(limit: int) -> int:
    """How many connections of clients may be open under a limit of open files; at least half of it."""
    return max(limit // 2, limit - RESERVED)
