"""The engine answers the demo model's golden set."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dev.parity.ours import load_source, scores_of
from inference.runner.engines.base import EntailmentItem, RowRange
from inference.runner.engines.ofa.engine import OfaEngine
from inference.wire import EntailmentScores

SHAPES = Path(__file__).resolve().parents[2] / "examples" / "shapes"
MIN_ACCURACY = 0.8


@pytest.fixture(scope="module")
def demo() -> OfaEngine:
    """The published demo model, loaded."""
    return load_source(SHAPES / "v1.0.0")


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Sequence[str]]]:
    """Its golden set."""
    return [json.loads(line) for line in (SHAPES / "golden" / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_demo_model_answers_its_golden_set(demo: OfaEngine, golden: list[dict[str, Sequence[str]]]) -> None:
    """Of 200 questions that no training has seen, at least four in five are answered right."""
    right = 0
    for row in golden:
        content = (SHAPES / "golden" / str(row["image"])).read_bytes()
        prepared = demo.prepare(EntailmentItem(content, tuple(row["statements"]), ""))
        (results,) = demo.compute([RowRange(prepared, 0, prepared.rows)])
        answers = [max(scores, key=scores.__getitem__) for scores in map(scores_of, results)]
        right += answers == list(row["expected"])

    assert len(golden) == 200
    assert right / len(golden) >= MIN_ACCURACY


def test_scores_sum_to_one(demo: OfaEngine, golden: list[dict[str, Sequence[str]]]) -> None:
    """The three probabilities of an answer are a distribution."""
    content = (SHAPES / "golden" / str(golden[0]["image"])).read_bytes()
    prepared = demo.prepare(EntailmentItem(content, ("there is a red circle", "there are two stars"), ""))

    for scores in demo.compute([RowRange(prepared, 0, 2)])[0]:
        assert isinstance(scores, EntailmentScores)
        assert scores.yes + scores.no + scores.maybe == pytest.approx(1.0, abs=1e-5)
