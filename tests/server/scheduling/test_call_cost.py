"""The measured cost of a call: fitted, followed through changes, and never a reason to refuse for ever."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.call_cost import CallCost


def learnt(overhead: float, row: float, sizes: list[int], cost: CallCost | None = None) -> CallCost:
    """A cost that has seen calls of these sizes."""
    cost = CallCost() if cost is None else cost
    for rows in sizes:
        cost.learn(overhead + row * rows, rows)
    return cost


def test_nothing_is_expected_before_anything_was_measured() -> None:
    """A cost that is not known yet is 0, so nothing is refused for it."""
    cost = CallCost()
    assert (cost.is_known, cost.expected(32), cost.at_best(32), cost.expected_work(100, 8)) == (False, 0.0, 0.0, 0.0)


def test_overhead_and_row_are_told_apart() -> None:
    """From calls of different sizes both parts of the cost are found."""
    cost = learnt(0.02, 0.001, [1, 64, 8, 32, 2, 64, 1, 16] * 8)
    assert cost.overhead_seconds == pytest.approx(0.02, rel=0.05)
    assert cost.row_seconds == pytest.approx(0.001, rel=0.1)
    assert cost.expected_work(128, 64) == pytest.approx(0.168, rel=0.05)


def test_calls_of_one_size_have_no_overhead() -> None:
    """What cannot be told apart counts as cost of the rows."""
    cost = learnt(0.02, 0.001, [16] * 20)
    assert cost.expected(16) == pytest.approx(0.036)
    assert cost.overhead_seconds == pytest.approx(0.0, abs=1e-4)


def test_a_size_that_was_not_seen_for_long_is_not_forgotten() -> None:
    """Hours of single rows do not make a large call look expensive."""
    cost = learnt(0.02, 0.001, [1, 64, 8] * 5 + [1] * 300)
    assert cost.expected(64) == pytest.approx(0.084, rel=0.2)


def test_the_mean_follows_small_changes_slowly() -> None:
    """One slow call changes little; many do."""
    cost = learnt(0, 0.01, [4] * 20)
    cost.learn(0.08, 4)
    assert cost.expected(4) < 0.05
    assert learnt(0, 0.018, [4] * 30, cost).expected(4) == pytest.approx(0.072, rel=0.05)


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_a_jump_is_followed_after_two_calls(factor: float) -> None:
    """A cost that changes by a factor of a hundred, either way, is known after the second call."""
    cost = learnt(0.01, 0.001, [1, 8, 64] * 10)
    cost = learnt(0.01 * factor, 0.001 * factor, [8, 64], cost)
    assert cost.expected(64) == pytest.approx(0.074 * factor, rel=0.05)
    assert cost.expected(8) == pytest.approx(0.018 * factor, rel=0.05)


def test_one_slow_call_is_no_jump() -> None:
    """A call that was disturbed does not replace what is known."""
    cost = learnt(0, 0.01, [4] * 20)
    cost.learn(4.0, 4)
    assert cost.expected(4) < 1.0
    assert learnt(0, 0.01, [4] * 20, cost).expected(4) == pytest.approx(0.04, rel=0.3)


def test_another_size_is_no_jump() -> None:
    """A large call after small ones, or a small one after large ones, adds to what is known."""
    cost = learnt(0.02, 0.001, [1] * 20 + [64] * 2 + [1] * 2)
    assert cost.expected(64) == pytest.approx(0.084, rel=0.1)
    assert cost.expected(1) == pytest.approx(0.021, rel=0.1)


def test_a_cost_measured_under_load_is_corrected_by_the_first_answer() -> None:
    """After a warm-up that was a hundred times too slow, one call shows what can be met."""
    cost = CallCost(1.0)
    cost.learn(0.01, 1)
    assert cost.at_best(32) == pytest.approx(0.32)


def test_a_busy_hour_does_not_look_like_the_best() -> None:
    """While calls are slower the lowest cost rises slowly; after a jump it is half of the new mean, and rises."""
    cost = learnt(0, 0.02, [1] * 10, learnt(0, 0.012, [1] * 10))
    assert cost.at_best(1) < 0.016
    cost = learnt(0, 1.2, [1] * 2, cost)
    assert cost.at_best(1) == pytest.approx(0.6, rel=0.1)
    assert learnt(0, 1.2, [1] * 200, cost).at_best(1) == pytest.approx(1.2, rel=0.05)


@given(
    st.floats(0, 0.1), st.floats(1e-5, 0.5), st.lists(st.integers(1, 64), min_size=3, max_size=60), st.integers(0, 99)
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_expected_is_what_is_measured(overhead: float, row: float, sizes: list[int], seed: int) -> None:
    """For any line, sizes and some noise: within a third for the sizes seen, and never negative."""
    cost, noise = CallCost(), random.Random(seed)
    for rows in sizes:
        cost.learn((overhead + row * rows) * noise.uniform(0.95, 1.05), rows)
    for rows in {*sizes, 1, 64}:
        assert 0 <= cost.at_best(rows) <= cost.expected(rows)
    for rows in sizes:
        assert cost.expected(rows) == pytest.approx(overhead + row * rows, rel=0.34)
