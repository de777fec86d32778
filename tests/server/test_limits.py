"""What a device call is expected to take: the mean for limits, the best for what cannot be done in time."""

import pytest

from inference.row_cost import RowCost
from inference.server.scheduling.dispatcher import LimitRules, limit_seconds


def test_nothing_is_expected_before_anything_was_measured() -> None:
    """Nobody is refused, and nothing is called hung before the floor."""
    cost = RowCost()

    assert (cost.expected(32), cost.at_best(32)) == (0.0, 0.0)
    assert limit_seconds(cost, 32, LimitRules(min_timeout_seconds=2.0, factor=10.0)) == 2.0


def test_a_cost_measured_beside_live_load_turns_nobody_away_for_long() -> None:
    """A load that shares its machine measures twenty times the cost: the first answer puts it right."""
    cost = RowCost(12.0)
    cost.learn(0.6, 1)

    assert cost.at_best(32) == pytest.approx(19.2)
    assert cost.expected(32) > 300, "limits stay wide while nothing is sure"


def test_a_busy_hour_does_not_look_like_the_best() -> None:
    """After twenty slow batches what would fit on a good day is still let in; after hundreds it is not."""
    cost = RowCost(0.5)
    for _ in range(20):
        cost.learn(5.0, 1)
    assert cost.at_best(1) < 3.5
    assert cost.expected(1) > 4.9

    for _ in range(200):
        cost.learn(5.0, 1)
    assert cost.at_best(1) > 4.9


def test_a_batch_without_rows_teaches_nothing() -> None:
    """What was cancelled or refused was not computed."""
    cost = RowCost(0.5)
    cost.learn(0.0, 0)
    cost.learn(-1.0, 1)

    assert (cost.expected(2), cost.at_best(2)) == (1.0, 1.0)


def test_the_mean_follows_the_calls() -> None:
    """The measured cost moves towards what calls really take; the first measurement counts whole."""
    cost = RowCost(1.0)
    for _ in range(40):
        cost.learn(seconds=8.0, rows=4)
    assert cost.row_seconds == pytest.approx(2.0, abs=0.01)

    unknown = RowCost()
    unknown.learn(seconds=8.0, rows=4)
    assert unknown.row_seconds == 2.0
