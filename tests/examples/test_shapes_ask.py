"""The tutorial's caller counts what became of its calls."""

import itertools
from pathlib import Path

from examples.shapes.ask import ask
from hotslot_client import Overloaded, Prediction, ServedBy, Timing, Unavailable


class ScriptedCaller:
    """Answers of two revisions, then two failures, then the first again."""

    def __init__(self) -> None:
        self._outcomes = iter(("v1", "v1", "v2", Overloaded("full", reason="QUEUE_FULL"), Unavailable("away")))

    def predict(self, _picture: Path, _statements: list[str], *, model: str) -> Prediction:
        """The next outcome."""
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return Prediction((), ServedBy(model, outcome, "", "cpu", "a", ""), Timing(0, 0, 0))


def test_answers_are_counted_by_revision_and_failures_by_reason() -> None:
    """An error without a reason of the server counts by its code."""
    clock = itertools.count()
    counts = ask(ScriptedCaller(), 10, lambda: float(next(clock)))
    assert str(counts) == (
        "5 calls: answered 2 by v1, 1 by v2; 2 failed (1 QUEUE_FULL, 1 UNAVAILABLE); the longest took 1.00 s"
    )
