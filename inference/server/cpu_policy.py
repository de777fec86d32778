"""The kernel's scheduling policy of the server's threads."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from common.cgroup import count_usable_cpus
from common.clock import Clock, read_cpu_seconds

PAUSE_SECONDS = 0.5  # between two looks at the server's own CPU time
BUSY_SHARE, CALM_SHARE = 0.1, 0.05  # of a CPU that the server's threads take


def choose_policy(policy: int, share: float) -> int:
    """The policy of the server's threads on a single CPU, SCHED_OTHER or SCHED_BATCH. Pure.

    Each packet wakes a thread of gRPC, which interrupts the device call, and then the event loop, which interrupts the
    thread of gRPC: about twelve switches a call, each with cold caches. Threads with SCHED_BATCH do not interrupt
    others when they wake up; they run when the running thread waits or has had its share, some milliseconds later at
    most, and then process all that has come meanwhile. That pays while there are many calls. With few, each would only
    be answered later beside another busy process.

    Args:
        policy: that they have.
        share: of a CPU that they took lately.
    """
    if share >= BUSY_SHARE:
        return os.SCHED_BATCH
    return os.SCHED_OTHER if share < CALM_SHARE else policy


def list_threads() -> list[int]:
    """The threads of this process."""
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


class CpuPolicy:
    """Keeps the policy of all threads, if this process has a single CPU and nobody has chosen a policy for it.

    Args:
        clock: for the share of a CPU.
        cpus: that can be used.
        read_seconds: CPU seconds of the process.
        threads: of the process.
    """

    def __init__(
        self,
        clock: Clock,
        cpus: Callable[[], int] = count_usable_cpus,
        read_seconds: Callable[[], float] = read_cpu_seconds,
        threads: Callable[[], Iterable[int]] = list_threads,
    ) -> None:
        self._clock, self._read_seconds, self._threads = clock, read_seconds, threads
        self._policy = os.sched_getscheduler(0)
        self._is_wanted = self._policy == os.SCHED_OTHER and cpus() == 1
        self._before = clock.monotonic(), read_seconds()

    def update(self) -> None:
        """Look at what the server took since the last look."""
        if not self._is_wanted:
            return
        before, self._before = self._before, (self._clock.monotonic(), self._read_seconds())
        elapsed, used = (now - then for now, then in zip(self._before, before, strict=True))
        policy = choose_policy(self._policy, used / elapsed if elapsed > 0 else 0.0)
        if policy == self._policy:
            return
        threads = list(self._threads())  # it fails without a free descriptor; then the next look tries again
        self._policy = policy
        for thread in threads:
            with contextlib.suppress(OSError):  # it has ended, or a sandbox does not permit it
                os.sched_setscheduler(thread, policy, os.sched_param(0))
