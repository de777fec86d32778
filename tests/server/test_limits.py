"""The expected cost of a device call, its time limit, and whether a heartbeat shows that it hangs."""

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.server.scheduling.limits import WALL_FACTOR, LimitRules, find_hang, limit_seconds


def test_nothing_is_expected_before_anything_was_measured() -> None:
    """No request is refused, and the minimum time limit applies."""
    cost = CallCost()

    assert (cost.expected(32), cost.at_best(32)) == (0.0, 0.0)
    assert limit_seconds(cost, 32, LimitRules(min_timeout_seconds=2.0, factor=10.0)) == 2.0


def test_a_cost_measured_under_load_is_corrected_by_the_first_answer() -> None:
    """A warm-up under load measures a cost that is twenty times too high."""
    cost = CallCost(12.0)
    cost.learn(0.6, 1)

    assert cost.at_best(32) == pytest.approx(19.2)
    assert cost.expected(32) > 300, "limits stay wide while nothing is sure"


def test_a_call_without_rows_does_not_change_the_cost() -> None:
    """Cancelled and refused items were not computed."""
    cost = CallCost(0.5)
    cost.learn(0.0, 0)
    cost.learn(-1.0, 1)

    assert (cost.expected(2), cost.at_best(2)) == (1.0, 1.0)


CALL = {"rows_on_step": 8, "seconds_on_step": 5.0, "cpu_seconds_on_step": 1.0, "seconds_asleep": 1.0}


@pytest.mark.fault("K8")
@pytest.mark.fault("L12")
@pytest.mark.parametrize(
    ("changes", "is_cpu", "hangs"),
    [
        ({}, True, False),  # slowed down by others: it has had 1 s of a CPU in 5 s
        ({}, False, True),  # a GPU is judged by wall-clock time
        ({"seconds_on_step": 1.9}, False, False),
        ({"cpu_seconds_on_step": 2.0}, True, True),  # it computes for ever
        ({"seconds_asleep": 2.0}, True, True),  # it waits for something that does not come
        ({"seconds_on_step": 2.0 * WALL_FACTOR}, True, True),
        ({"rows_on_step": 0, "cpu_seconds_on_step": 9.0}, True, False),  # the step of a load, which has its own limit
        ({"seconds_on_step": 1.0, "oldest_preparation_seconds": 2.9}, True, False),
        ({"rows_on_step": 0, "oldest_preparation_seconds": 3.0}, True, True),
    ],
)
def test_a_hang_is_seen_by_the_clock_of_what_hangs(
    changes: dict[str, float],
    is_cpu: bool,  # noqa: FBT001
    hangs: bool,  # noqa: FBT001
) -> None:
    """A call on a CPU by its CPU time or its sleep, on a GPU by wall-clock time; a preparation by its own clock."""
    heartbeat = runner_pb2.Heartbeat(**{**CALL, **changes})  # type: ignore[arg-type]

    assert bool(find_hang(heartbeat, 2.0, 3.0, is_cpu=is_cpu)) == hangs
