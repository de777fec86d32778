"""On a single CPU the threads of a busy server do not interrupt a device call; a runner's do."""

import errno
import os
import threading
from collections.abc import Callable, Sequence

import pytest

from inference.runner.process import leave_batch_policy
from inference.server.cpu_policy import BUSY_SHARE, CALM_SHARE, CpuPolicy
from tests.server.simulator import ManualClock

BUSY, BETWEEN, CALM = 1.1 * BUSY_SHARE, (BUSY_SHARE + CALM_SHARE) / 2, CALM_SHARE / 2


def policies_of(steps: Sequence[Callable[[], None]], first: int = os.SCHED_OTHER) -> list[int]:
    """The policies of a new thread, which begins with the first one, after each of these steps."""
    found: list[int] = []

    def run() -> None:
        os.sched_setscheduler(0, first, os.sched_param(0))
        for step in steps:
            step()
            found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def policies_at(shares: Sequence[float], cpus: int, first: int = os.SCHED_OTHER) -> list[int]:
    """The policies of a thread of a server that takes these shares of a CPU, one second each."""
    clock, used, made = ManualClock(), [0.0], []

    def begin() -> None:
        made.append(CpuPolicy(clock, lambda: cpus, lambda: used[0], lambda: [0]))

    def take(share: float) -> None:
        clock.seconds += 1.0
        used[0] += share
        made[0].update()

    return policies_of([begin, *((lambda share=share: take(share)) for share in shares)], first)[1:]


def test_the_threads_of_a_busy_server_interrupt_no_other_thread_on_a_single_cpu() -> None:
    """With few calls they do, so that each is answered soon also beside another busy process."""
    shares = [CALM, BETWEEN, BUSY, BETWEEN, CALM, BETWEEN]

    other, batch = os.SCHED_OTHER, os.SCHED_BATCH
    assert policies_at(shares, cpus=1) == [other, other, batch, batch, other, other]


@pytest.mark.parametrize(("cpus", "first"), [(2, os.SCHED_OTHER), (1, os.SCHED_BATCH), (1, os.SCHED_IDLE)])
def test_the_policy_is_kept_with_more_cpus_or_if_another_was_chosen(cpus: int, first: int) -> None:
    """With more CPUs a thread that wakes up takes one that is idle; another policy is the choice of who starts it."""
    assert policies_at([BUSY, CALM], cpus, first) == [first, first]


def test_a_runner_leaves_the_policy_that_it_has_inherited_from_the_server() -> None:
    """Its threads have to interrupt the device call, to prepare the next one's items meanwhile."""
    assert policies_of([leave_batch_policy], os.SCHED_BATCH) == [os.SCHED_OTHER]


def test_a_policy_that_could_not_be_set_is_set_by_the_next_look() -> None:
    """The threads cannot be listed without a free descriptor."""
    clock, made, failures = ManualClock(), [], [OSError(errno.EMFILE, "too many open files")]

    def list_threads() -> Sequence[int]:
        if failures:
            raise failures.pop()
        return [0]

    def begin() -> None:
        made.append(CpuPolicy(clock, lambda: 1, lambda: clock.seconds, list_threads))

    def fail() -> None:
        clock.seconds += 1.0
        with pytest.raises(OSError, match="too many"):
            made[0].update()

    def update() -> None:
        clock.seconds += 1.0
        made[0].update()

    assert policies_of([begin, fail, update]) == [os.SCHED_OTHER, os.SCHED_OTHER, os.SCHED_BATCH]
