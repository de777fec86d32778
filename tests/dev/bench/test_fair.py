"""The fairness benchmark's numbers, from invented outcomes and device calls."""

import pytest

from dev.bench.fair_case import CALL_ROWS, ROW_SECONDS, Case, groups_of, measure, pictures_of
from dev.harness.device_calls import DeviceCall
from dev.harness.loadgen import Outcome, Played

SECONDS = 10.0
CASE = Case("unary callers", 2, 1, "same connection")
GROUPS = groups_of(CASE, SECONDS)
STREAM, UNARY = (pictures_of(group).pop() for group in GROUPS)


def device_calls(unary_rows: int) -> list[DeviceCall]:
    """A device that is always busy; in the second part with some rows of unary calls in each call."""
    calls = []
    for number in range(1, int(2 * SECONDS / (CALL_ROWS * ROW_SECONDS)) + 1):
        ended = number * CALL_ROWS * ROW_SECONDS
        unary = unary_rows if ended > SECONDS else 0
        calls.append(DeviceCall("r1", ended, CALL_ROWS * ROW_SECONDS, ((STREAM, CALL_ROWS - unary), (UNARY, unary))))
    return calls


def played(unary_seconds: float, *more: Outcome) -> Played:
    """A load in which two streams get as much, and unary calls take some time."""
    items = [Outcome("first", 0, 1, number % 2, number / 10, 0.1, "OK") for number in range(190)]
    unary = [Outcome("second", 0, 1, 0, 14 + number / 10, unary_seconds, "OK") for number in range(50)]
    return Played(0.0, 2 * SECONDS, [*items, *unary, *more])


def test_a_fair_server_meets_the_goals() -> None:
    """Each unary call waits for one device call; together they take a quarter of the device."""
    found = measure(CASE, GROUPS, played(9 * ROW_SECONDS), device_calls(2))

    assert found.misses == ()
    assert found.factor == pytest.approx(1.0)
    assert found.throughput == pytest.approx(1.0)
    assert found.share == pytest.approx(0.25)


def test_each_goal_is_judged() -> None:
    """Slow and refused unary calls, a refused item, a starved stream, an idle device."""
    refused = [Outcome(group, 0, 1, 0, 15.0, 0.0, "RESOURCE_EXHAUSTED") for group in ("first", "second")]
    starving = [Outcome("first", 0, 1, 1, 11.0, 0.1, "OK")] * 500
    idle = [call for call in device_calls(0) if call.ended < SECONDS or int(call.ended * 100) % 2]

    found = measure(CASE, GROUPS, played(0.5, *refused, *starving), idle)

    assert [miss.split(" is ")[0].split(" to ")[0] for miss in found.misses] == [
        "unary p99",
        "1 of 51 unary calls failed",
        "1 of 691 items failed",
        "throughput falls",
        "a stream gets 16% of the mean",
    ]
