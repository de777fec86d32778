"""Goodput is counted from what engines computed and what callers received."""

import pytest

from dev.bench.goodput import count_calls, delivered_rows, possible_rows
from dev.bench.overload_case import Case, Measured, judge
from dev.harness.device_calls import DeviceCall
from dev.harness.loadgen import Outcome


def answered(at: float, ended: float, rows: int = 1) -> Outcome:
    """An answer."""
    return Outcome("calls", 0, rows, 0, at, ended - at, "OK")


def refused(took: float, retry: float = 0.5) -> Outcome:
    """A refusal for load."""
    return Outcome("calls", 0, 1, 0, 1.0, took, "RESOURCE_EXHAUSTED", "QUEUE_FULL", retry, "500")


def test_rows_are_counted_in_the_windows_in_which_a_device_computed_them() -> None:
    """A call on the border of two windows counts in both; what reached no caller counts in none."""
    calls = [DeviceCall("r1", 100.0 + 2.0 * number, 2.0, (("wanted", 7), ("late", 1))) for number in range(1, 31)]

    assert delivered_rows(calls, {"wanted"}, began=100.0, window=15.0, windows=4) == pytest.approx([52.5] * 4)


def test_a_perfect_server_refuses_what_cannot_end_in_time() -> None:
    """Two calls a second of 0.75 s: the queue grows to the deadline, then every third call is refused."""
    outcomes = [answered(0.5 * number, 0.0) for number in range(60)]

    possible = possible_rows(outcomes, deadline=2.0, row_seconds=0.75, window=10.0, windows=3)

    assert possible == pytest.approx([10 / 0.75] * 3)


def test_a_perfect_server_waits_for_calls() -> None:
    """It cannot compute what was not sent."""
    assert possible_rows([answered(4.0, 4.5)], 1.0, 0.5, window=2.0, windows=3) == [0.0, 0.0, 1.0]


def test_each_goal_is_judged() -> None:
    """A starved window, wasted rows, a slow refusal, one without a delay, and a lost call are told."""
    case = Case(rows_per_second=4, load=2, deadline=10, rows=1)
    expired = Outcome("calls", 0, 1, 0, 0.0, 10.0, "DEADLINE_EXCEEDED")
    good = count_calls([answered(0.0, 1.0), refused(0.001)])
    bad = count_calls([refused(0.001), refused(0.5, retry=0.0), expired])

    assert judge(Measured(case, good, (0.5, 1.0, 0.96), (), wasted=0.02)) == []
    assert judge(Measured(case, bad, (1.0, 0.5), (), wasted=0.5)) == [
        "a window with 50% of the rows",
        "50.0% of the device's time wasted",
        "refusals take 500 ms",
        "1 neither answered nor refused",
        "1 refused without a retry delay",
    ]


def test_calls_that_cannot_be_in_time_must_all_be_refused() -> None:
    """Eight rows of a quarter of a second do not fit into a second."""
    case = Case(rows_per_second=4, load=2, deadline=1, rows=8)

    assert judge(Measured(case, count_calls([refused(0.001)]), (1.0,), (), 0.0)) == []
    assert judge(Measured(case, count_calls([answered(0.0, 1.0), refused(0.001)]), (1.0,), (), 0.0)) == [
        "1 impossible calls not refused"
    ]
