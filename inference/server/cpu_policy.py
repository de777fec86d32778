"""The kernel's scheduling policy of the server's threads."""

import contextlib
import os

from common.cgroup import count_usable_cpus


def choose_policy(policy: int, usable_cpus: int) -> int:
    """The policy of the server's threads, where the kernel's default is SCHED_OTHER. Pure.

    On a single CPU each packet wakes a thread of gRPC, which interrupts the device call, and then the event loop, which
    interrupts the thread of gRPC: about twelve switches a call, each with cold caches. Threads with SCHED_BATCH do not
    interrupt others when they wake up; they run when the running thread waits or has had its share, some milliseconds
    later at most, and then process all that has come meanwhile.

    Args:
        policy: that the process has.
        usable_cpus: by affinity and quota.
    """
    return os.SCHED_BATCH if policy == os.SCHED_OTHER and usable_cpus == 1 else policy


def set_policy() -> None:
    """Set the policy of this thread, and so of all that it starts. Runners leave it: see `leave_batch_policy`."""
    policy = os.sched_getscheduler(0)
    chosen = choose_policy(policy, count_usable_cpus())
    if chosen != policy:
        with contextlib.suppress(OSError):  # a sandbox may not permit it
            os.sched_setscheduler(0, chosen, os.sched_param(0))
