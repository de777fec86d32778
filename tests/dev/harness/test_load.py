"""What a load reports of the answers that its callers got."""

import math

import pytest

from dev.harness.load import Answered, LoadReport

ANSWERS = [
    Answered(1.0, "v1", 0.1, is_right=True, phase="steady"),
    Answered(1.5, "v1", 0.2, is_right=True, phase="steady"),
    Answered(4.0, "v2", 2.5, is_right=True, phase="killed"),
    Answered(4.1, "v1", 0.3, is_right=True, phase="steady"),
]
LOAD = LoadReport(answers=ANSWERS)


def test_the_longest_gap_is_found_wherever_it_was_asked() -> None:
    """Overall, and around one moment: an answer that was asked before it and came after it counts."""
    assert LOAD.gap_between(0.0, math.inf) == 2.5
    assert LOAD.gap_between(2.0, 3.0) == 2.5
    assert LOAD.gap_between(0.0, 1.1) == 0.5
    assert LoadReport().gap_between(0.0, math.inf) == 0.0


@pytest.mark.parametrize(("phases", "seconds"), [(["steady"], 0.3), (["killed"], 2.5), (["other"], 0.0)])
def test_the_99th_percentile_is_of_some_phases(phases: list[str], seconds: float) -> None:
    """What was asked while something else went on is left out."""
    assert seconds == LOAD.p99(phases)


def test_first_and_last_answers_of_a_revision() -> None:
    """Since a moment, or not at all."""
    assert LOAD.first_of("v1") == 1.0
    assert LOAD.first_of("v1", since=2.0) == 4.1
    assert LOAD.last_of("v1") == 4.1
    assert LOAD.first_of("v3") is None
    assert LOAD.last_of("v3") is None
