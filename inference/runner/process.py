"""How the C library keeps memory that a call has freed, so that the next call finds it ready."""

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
KEPT_BYTES = 512 << 20  # free at the heap's end, before it is given back: more than a large model's call takes
LARGE_BYTES = 128 << 20  # a block of this size is asked of the system, and given back at once
_LARGE_BYTES_OF_OLD = 32 << 20  # what every glibc takes


def keep_freed_memory() -> bool:
    """Let a device call's blocks stay in the heap; before any thread is started.

    By default blocks above some 30 MB, and heaps of threads, are given back after every call and their
    pages cleared by the kernel when the next one touches them: a fifth of a large model's time in
    bfloat16 was seen to go there.

    Returns:
        Whether the C library has such a switch; without it all works as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    large = mallopt(_MMAP_THRESHOLD, LARGE_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGE_BYTES_OF_OLD)
    # One heap for all threads: those of other threads are 64 MB at most.
    return bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES) and large and mallopt(_ARENA_MAX, 1))


CANDIDATE_NICENESS = 10  # added to the inherited one
MAX_NICENESS = 19
MAX_OOM_SCORE_ADJ = 1000
CAP_SYS_NICE = 23
_PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Standing:
    """What was inherited, and what is added to it while nobody waits for this process."""

    niceness: int
    oom_score_adj: int
    added_oom_score: int
    may_be_nice: bool  # whether a raised niceness could be lowered again

    def apply(self, *, is_serving: bool) -> list[str]:
        """Take the standing of a serving or of a waiting process.

        Returns:
            What the system did not allow, in words; it costs priority, nothing else.
        """
        refused = []
        raised = 0 if is_serving else self.added_oom_score
        try:
            _write_oom_score(min(MAX_OOM_SCORE_ADJ, self.oom_score_adj + raised))
        except OSError as error:
            refused.append(f"oom_score_adj: {error.strerror}")
        if self.may_be_nice:
            wanted = self.niceness if is_serving else min(MAX_NICENESS, self.niceness + CANDIDATE_NICENESS)
            try:
                _renice(wanted)
            except OSError as error:
                refused.append(f"niceness: {error.strerror}")
        return refused


def inherited(added_oom_score: int) -> Standing:
    """Read what this process was given."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        score = int((_PROC / "oom_score_adj").read_text(encoding="ascii"))
    except (OSError, ValueError):
        score = 0
    may = may_lower(niceness, resource.getrlimit(resource.RLIMIT_NICE)[0], _capabilities())
    return Standing(niceness, score, added_oom_score, may)


def may_lower(niceness: int, nice_limit: int, capabilities: int) -> bool:
    """Pure: whether a process that raised its niceness could come back to this one.

    Args:
        niceness: to come back to.
        nice_limit: soft RLIMIT_NICE; 20 minus the lowest niceness allowed, -1 for no limit.
        capabilities: effective set, as a bit mask.
    """
    if capabilities >> CAP_SYS_NICE & 1 or nice_limit == resource.RLIM_INFINITY:
        return True
    return 20 - nice_limit <= niceness


def _renice(wanted: int) -> None:
    # On Linux niceness belongs to the thread. A thread born during a pass inherits from its maker,
    # who may not have had its turn: hence again until a pass finds nothing to do.
    for _ in range(3):
        late = [thread for thread in _threads() if _niceness(thread) not in (wanted, None)]
        if not late:
            return
        for thread in late:
            try:
                os.setpriority(os.PRIO_PROCESS, thread, wanted)
            except ProcessLookupError:
                continue  # it has just ended


def _threads() -> Iterator[int]:
    return (int(entry.name) for entry in (_PROC / "task").iterdir())


def _niceness(thread: int) -> int | None:
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return None


def _capabilities() -> int:
    try:
        lines = (_PROC / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)


def _write_oom_score(score: int) -> None:
    (_PROC / "oom_score_adj").write_text(f"{score}\n", encoding="ascii")


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
