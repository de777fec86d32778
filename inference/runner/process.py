"""Settings of the runner's process: heap thresholds, priority, and the parent-death signal."""

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
KEPT_BYTES = 512 << 20  # free bytes at the heap's end that are kept; more than a call of the large model takes
LARGE_BYTES = 128 << 20  # blocks of at least this size are mapped, and unmapped when freed
_LARGE_BYTES_FALLBACK = 32 << 20  # largest value that every glibc accepts


def keep_freed_memory() -> bool:
    """Keep memory that a device call frees in the heap. Call before any thread is started.

    By default glibc returns blocks above about 30 MB, and heaps of threads, to the system after every call, and the
    kernel clears their pages again in the next call: 20 % of the large model's time in bfloat16.

    Returns:
        Whether the C library supports it (`mallopt`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    large = mallopt(_MMAP_THRESHOLD, LARGE_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGE_BYTES_FALLBACK)
    # One heap for all threads: heaps of other threads are limited to 64 MB.
    return bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES) and large and mallopt(_ARENA_MAX, 1))


CANDIDATE_NICENESS = 10  # added to the inherited niceness
MAX_NICENESS = 19
MAX_OOM_SCORE_ADJ = 1000
CAP_SYS_NICE = 23
_PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Priority:
    """The process's inherited niceness and OOM score, and how both are raised while it does not serve."""

    niceness: int
    oom_score_adj: int
    added_oom_score: int
    can_lower: bool  # whether a raised niceness can be lowered again

    def apply(self, children: Sequence[int] = (), *, is_serving: bool, yields: bool = False) -> list[str]:
        """Set niceness, scheduling policy and OOM score for a process that serves, or that does not.

        Args:
            children: ids of processes that get the same niceness and policy.
            is_serving: whether callers wait for this process.
            yields: whether it runs only when no other process wants the CPUs. At a high niceness alone it would keep a
                CPU for some milliseconds after another process has become ready: too long beside a caller's request.

        Returns:
            Messages of refused settings; the process works without them.
        """
        refused = []
        raised = 0 if is_serving else self.added_oom_score
        try:
            set_oom_score(min(MAX_OOM_SCORE_ADJ, self.oom_score_adj + raised))
        except OSError as error:
            refused.append(f"oom_score_adj: {error.strerror}")
        if self.can_lower:
            wanted = self.niceness if is_serving else min(MAX_NICENESS, self.niceness + CANDIDATE_NICENESS)
            try:
                _renice(wanted)
                for child in children:
                    _set_niceness(child, wanted)
            except OSError as error:
                refused.append(f"niceness: {error.strerror}")
            try:
                for thread in (*_threads(), *children):
                    _set_policy(thread, os.SCHED_IDLE if yields else os.SCHED_OTHER)
            except OSError as error:
                refused.append(f"scheduling policy: {error.strerror}")
        return refused

    def set_child(self, child: int, is_needed: bool) -> None:  # noqa: FBT001  a callback of the decoders
        """Give a child this thread's policy and niceness, or a candidate's niceness while it is not needed at once.

        A child that starts while `apply` runs may have inherited those before, and not be among its children.
        """
        if self.can_lower:
            with contextlib.suppress(OSError):
                own = os.getpriority(os.PRIO_PROCESS, 0)
                _set_niceness(child, own if is_needed else min(MAX_NICENESS, own + CANDIDATE_NICENESS))
                _set_policy(child, os.sched_getscheduler(0))


def read_priority(added_oom_score: int) -> Priority:
    """Read the priority that this process inherited."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        score = int((_PROC / "oom_score_adj").read_text(encoding="ascii"))
    except (OSError, ValueError):
        score = 0
    can_lower = can_lower_niceness(niceness, resource.getrlimit(resource.RLIMIT_NICE)[0], _capabilities())
    return Priority(niceness, score, added_oom_score, can_lower)


def can_lower_niceness(niceness: int, nice_limit: int, capabilities: int) -> bool:
    """Whether a process that raised its niceness may set it back. Pure.

    Args:
        niceness: value to set back to.
        nice_limit: soft RLIMIT_NICE; 20 minus the lowest niceness allowed, -1 for no limit.
        capabilities: effective set, as a bit mask.
    """
    if capabilities >> CAP_SYS_NICE & 1 or nice_limit == resource.RLIM_INFINITY:
        return True
    return 20 - nice_limit <= niceness


def _renice(wanted: int) -> None:
    # On Linux niceness belongs to the thread. A thread created during a pass may inherit the old value, hence
    # passes are repeated until one finds nothing to change.
    for _ in range(3):
        unchanged = [thread for thread in _threads() if _niceness(thread) not in (wanted, None)]
        if not unchanged:
            return
        for thread in unchanged:
            _set_niceness(thread, wanted)


def _set_niceness(thread: int, wanted: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, thread, wanted)


def _set_policy(thread: int, wanted: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        if os.sched_getscheduler(thread) != wanted:
            os.sched_setscheduler(thread, wanted, os.sched_param(0))


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


def set_oom_score(score: int) -> None:
    """Set how early the kernel ends this process when memory runs out: -1000 to 1000.

    Raises:
        OSError: it was lowered without permission.
    """
    (_PROC / "oom_score_adj").write_text(f"{score}\n", encoding="ascii")


def leave_batch_policy() -> None:
    """Set the calling thread's policy to the usual one if it has inherited the server's on a single CPU.

    With it, no thread of this process would interrupt the device call, to receive or prepare the next items.
    """
    if os.sched_getscheduler(0) == os.SCHED_BATCH:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


PR_SET_PDEATHSIG = 1


def bind_to_parent(parent: int) -> bool:
    """End this process when its parent ends, and ignore SIGINT and SIGTERM, which are sent to the whole group.

    Args:
        parent: process id of the parent, as passed by the parent.

    Returns:
        Whether the parent is still alive; if not, the caller must exit.

    Raises:
        OSError: the parent-death signal cannot be set.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the parent-death signal cannot be set")
    # Checked after the signal is set, because a parent that died earlier sends none.
    return os.getppid() == parent
