"""What the tour makes of the answers that its callers got."""

import pytest

from dev.demo.load import Answer, Load

LOAD = Load(
    answers=[
        Answer(1.0, 0.1, "v1", "steady"),
        Answer(1.5, 0.2, "v1", "steady"),
        Answer(4.0, 2.5, "v2", "killed"),
        Answer(4.1, 0.3, "v1", "steady"),
    ]
)


def test_answers_are_counted_by_revision() -> None:
    """Every answer stands under the revision that gave it."""
    assert LOAD.by_revision() == {"v1": 3, "v2": 1}


def test_the_longest_gap_is_found_wherever_it_was_asked() -> None:
    """Overall, and around one moment: an answer that was asked before it and came after it counts."""
    assert LOAD.longest_gap() == 2.5
    assert LOAD.longest_gap(since=2.0, until=3.0) == 2.5
    assert LOAD.longest_gap(until=0.9 + 0.2) == 0.5
    assert Load().longest_gap() == 0.0


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
