"""Real processes under load: goodput of an overloaded server, unary calls beside streams, two models on one device.

The goals of `make bench-overload` and `make bench-fair` with wide limits, for a busy machine: without the mechanisms
every number here is ten times worse.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from dev.bench import fair_case, overload_case

SECONDS = 3.0
MAX_FACTOR = 8.0  # the goal is 3; 29 without shares
RUNS = 3  # of which one must hold: other work may take the machine for seconds

T = TypeVar("T")


def find_undisturbed(tmp_path: Path, run: Callable[[Path], T], holds: Callable[[T], bool]) -> T:
    """The first run whose numbers hold, or the last one."""
    for number in range(RUNS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = run(folder)
        if holds(found):
            break
    return found


@pytest.mark.fault("L1")
@pytest.mark.usefixtures("go_tools")
def test_an_overloaded_server_answers_as_much_as_it_can(tmp_path: Path) -> None:
    """Four times what it computes, for deadlines of one second: the device is busy, nearly all it does is wanted."""
    case = overload_case.Case(40, load=4, deadline=1, rows=1)
    found = find_undisturbed(
        tmp_path,
        lambda folder: overload_case.run_case(case, folder, SECONDS),
        lambda found: min(found.windows) > 0.8 and found.wasted < 0.1 and found.calls.lost < 0.1 * found.calls.offered,
    )

    assert min(found.windows) > 0.8
    assert found.wasted < 0.1
    assert found.calls.lost < 0.1 * found.calls.offered
    assert found.calls.refusal_p99 < found.calls.answer_p99  # not when its deadline has passed
    assert found.calls.without_retry_delay == 0


@pytest.mark.fault("L2")
@pytest.mark.usefixtures("go_tools")
def test_unary_calls_beside_saturating_streams_wait_for_one_device_call(tmp_path: Path) -> None:
    """Ten streams of items of 32 rows on the same connection: no call and no item is refused."""
    case = fair_case.Case("unary callers", 10, 32, "same connection", warm_seconds=1.0)
    found = find_undisturbed(
        tmp_path,
        lambda folder: fair_case.run_case(case, folder, SECONDS),
        lambda found: _is_fair(found) and found.throughput > 0.6,
    )

    assert found.unary > 10
    assert found.factor < MAX_FACTOR
    assert (found.unary_failed, found.items_failed) == (0, 0)
    assert found.throughput > 0.6


@pytest.mark.fault("L3")
@pytest.mark.usefixtures("go_tools")
def test_a_model_beside_a_saturated_one_waits_for_one_device_call(tmp_path: Path) -> None:
    """On one device; the saturated model loses only what the other one uses."""
    case = fair_case.Case("unary callers", 10, 32, "two models", warm_seconds=1.0)
    found = find_undisturbed(tmp_path, lambda folder: fair_case.run_case(case, folder, SECONDS), _is_fair)

    assert found.unary > 10
    assert found.factor < MAX_FACTOR
    assert (found.unary_failed, found.items_failed) == (0, 0)


def _is_fair(found: fair_case.Measured) -> bool:
    return found.unary > 10 and found.factor < MAX_FACTOR
