"""The expected cost of a device call: the mean for time limits, the minimum for admission."""

import pytest

from inference.row_cost import RowCost
from inference.server.scheduling.dispatcher import LimitRules, limit_seconds


def test_nothing_is_expected_before_anything_was_measured() -> None:
    """No request is refused, and the minimum time limit applies."""
    cost = RowCost()

    assert (cost.expected(32), cost.at_best(32)) == (0.0, 0.0)
    assert limit_seconds(cost, 32, LimitRules(min_timeout_seconds=2.0, factor=10.0)) == 2.0


def test_a_cost_measured_under_load_is_corrected_by_the_first_answer() -> None:
    """A warm-up under load measures a cost that is twenty times too high."""
    cost = RowCost(12.0)
    cost.learn(0.6, 1)

    assert cost.at_best(32) == pytest.approx(19.2)
    assert cost.expected(32) > 300, "limits stay wide while nothing is sure"


def test_the_best_cost_adapts_slowly_to_slow_batches() -> None:
    """After twenty slow batches a request that fits the best cost is admitted; after hundreds it is refused."""
    cost = RowCost(0.5)
    for _ in range(20):
        cost.learn(5.0, 1)
    assert cost.at_best(1) < 3.5
    assert cost.expected(1) > 4.9

    for _ in range(200):
        cost.learn(5.0, 1)
    assert cost.at_best(1) > 4.9


def test_a_batch_without_rows_does_not_change_the_cost() -> None:
    """Cancelled and refused items were not computed."""
    cost = RowCost(0.5)
    cost.learn(0.0, 0)
    cost.learn(-1.0, 1)

    assert (cost.expected(2), cost.at_best(2)) == (1.0, 1.0)


def test_the_mean_follows_the_calls() -> None:
    """The mean moves towards the measured cost; the first measurement replaces it."""
    cost = RowCost(1.0)
    for _ in range(40):
        cost.learn(seconds=8.0, rows=4)
    assert cost.row_seconds == pytest.approx(2.0, abs=0.01)

    unknown = RowCost()
    unknown.learn(seconds=8.0, rows=4)
    assert unknown.row_seconds == 2.0
