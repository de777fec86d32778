"""Golden sets: what a line may say."""

import pytest

from common.golden_set import GoldenBroken, parse

ITEM = '{"item": "a", "image": "a.png", "statements": ["there is a dog"], "expected": ["yes"]}\n'
TASK = "visual-entailment"


def test_the_first_line_may_set_the_lowest_accuracy() -> None:
    """Without it every accuracy passes."""
    assert parse('{"min_accuracy": 0.8}\n' + ITEM, TASK).min_accuracy == 0.8
    assert parse(ITEM, TASK).min_accuracy == 0.0


@pytest.mark.parametrize("line", ['{"min_accuracy": 1.5}\n', '{"min_accuracy": true}\n', '{"min_accuracy": "0.8"}\n'])
def test_an_accuracy_that_is_not_a_share_is_refused(line: str) -> None:
    """It must be a number from 0 to 1; the message names the line."""
    with pytest.raises(GoldenBroken, match="line 1: min_accuracy must be a number from 0 to 1"):
        parse(line + ITEM, TASK)
