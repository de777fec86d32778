"""The server's threads do not interrupt a device call where there is one CPU; a runner's do."""

import os
import threading
from collections.abc import Callable

import pytest

from inference.runner.process import leave_batch_policy
from inference.server import cpu_policy


def policies_of(steps: list[Callable[[], None]]) -> list[int]:
    """The policies of a new thread after each of these steps."""
    found: list[int] = []

    def run() -> None:
        for step in steps:
            step()
            found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize(("cpus", "expected"), [(1, os.SCHED_BATCH), (2, os.SCHED_OTHER)])
def test_the_servers_threads_interrupt_no_other_thread_on_a_single_cpu(
    monkeypatch: pytest.MonkeyPatch, cpus: int, expected: int
) -> None:
    """With more CPUs they take one that is idle, or else interrupt what runs, as usual."""
    monkeypatch.setattr(cpu_policy, "count_usable_cpus", lambda: cpus)

    assert policies_of([cpu_policy.set_policy]) == [expected]


@pytest.mark.parametrize("policy", [os.SCHED_IDLE, os.SCHED_BATCH, os.SCHED_FIFO])
def test_a_policy_that_was_chosen_for_the_server_is_kept(policy: int) -> None:
    """By who starts it."""
    assert cpu_policy.choose_policy(policy, 1) == policy


def test_a_runner_leaves_the_policy_that_it_has_inherited_from_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads have to interrupt the device call, to prepare the next one's items meanwhile."""
    monkeypatch.setattr(cpu_policy, "count_usable_cpus", lambda: 1)

    assert policies_of([cpu_policy.set_policy, leave_batch_policy]) == [os.SCHED_BATCH, os.SCHED_OTHER]
