"""The engine's answers equal those of ModelScope's pipeline, recorded in fixtures/."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.parity.items import Question
from dev.parity.make_model import make_model
from dev.parity.ours import Scores, ask, item_of, load_source, scores_of
from dev.parity.variants import HALF, VARIANTS
from inference.runner.engines.base import EntailmentItem, RowRange
from inference.runner.engines.ofa.engine import OfaEngine

FIXTURES = Path(__file__).with_name("fixtures")
TOLERANCE = 1e-5
ROUGH_TOLERANCE = 2e-2  # of bfloat16

Engines = Callable[[str], OfaEngine]


def recorded(variant: str) -> list[dict[str, Any]]:
    """The oracle's items of a variant."""
    items: list[dict[str, Any]] = json.loads((FIXTURES / f"{variant}.json").read_text(encoding="utf-8"))["items"]
    return items


def questions_of(items: list[dict[str, Any]]) -> list[Question]:
    """What the oracle was asked."""
    return [Question(item["picture"], item["statement"], item["premise"]) for item in items]


def label_of(scores: Scores) -> str:
    """The answer."""
    return max(scores, key=scores.__getitem__)


def assert_agree(items: list[dict[str, Any]], answers: list[Scores], tolerance: float) -> None:
    """No probability is further away than the tolerance, and no label another."""
    gaps = [
        max(abs(item["scores"][label] - answer[label]) for label in answer)
        for item, answer in zip(items, answers, strict=True)
    ]
    assert max(gaps) <= tolerance
    assert [label_of(item["scores"]) for item in items] == [label_of(answer) for answer in answers]


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_items_agree(variant: str, engines: Engines) -> None:
    """Asked one by one, the engine gives the oracle's probabilities, with and without premise, on all test pictures."""
    items = recorded(variant)

    answers = ask(engines(variant), questions_of(items))

    assert_agree(items, answers, TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("together", [3, 16])
def test_padded_batches_agree(variant: str, together: int, engines: Engines) -> None:
    """Texts of mixed lengths in one padded call get the same answers as alone."""
    items = recorded(variant)

    answers = ask(engines(variant), questions_of(items), together)

    assert_agree(items, answers, TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_label_is_frequent_in_the_record(variant: str) -> None:
    """Each label is the oracle's answer in at least a fifth of the items, so agreement is not accidental."""
    items = recorded(variant)
    shares = Counter(label_of(item["scores"]) for item in items)

    assert min(shares[label] for label in ("yes", "no", "maybe")) >= len(items) / 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_have_the_oracle_s_tokens(variant: str, engines: Engines) -> None:
    """Words, numbers, other scripts, emoji and over-long texts become exactly the oracle's tokens."""
    items = recorded(variant)
    engine = engines(variant)

    prompts = [list(engine.prepare(item_of(question)).prompts[0]) for question in questions_of(items)]

    assert [item["tokens"] for item in items] == prompts


def test_several_statements_about_one_picture_agree(plain: OfaEngine) -> None:
    """Statements of one request get the same answers as alone, also when the request is split into row ranges."""
    items = [item for item in recorded("plain") if item["picture"] == "colour.png" and not item["premise"]]
    statements = tuple(item["statement"] for item in items)
    whole = plain.prepare(EntailmentItem(item_of(questions_of(items)[0]).image, statements, ""))

    first, rest = plain.compute([RowRange(whole, 0, 2), RowRange(whole, 2, len(items))])

    assert len(items) > 3
    assert_agree(items, [scores_of(result) for result in (*first, *rest)], TOLERANCE)


def test_rows_grouped_by_length_agree(sources: Callable[[str], Path]) -> None:
    """Where padding would cost too much memory, rows are grouped by length and answered in the caller's order."""
    items = recorded("plain")
    engine = load_source(sources("plain"))
    engine.max_masked_rows = 2

    answers = ask(engine, questions_of(items), 16)

    assert_agree(items, answers, TOLERANCE)


def test_bfloat16_agrees_roughly(sources: Callable[[str], Path]) -> None:
    """In bfloat16 probabilities stay within 0.02 and labels flip only where two answers are that close."""
    items = recorded("plain")

    answers = ask(load_source(sources("plain"), "bfloat16"), questions_of(items), 8)

    for item, answer in zip(items, answers, strict=True):
        best, second = sorted(item["scores"].values(), reverse=True)[:2]
        assert max(abs(item["scores"][label] - answer[label]) for label in answer) <= ROUGH_TOLERANCE
        assert label_of(item["scores"]) == label_of(answer) or best - second < 2 * ROUGH_TOLERANCE


def test_half_precision_source_computes_in_full(tmp_path: Path) -> None:
    """A model published in float16 is stored and computed in float32; only its own rounding remains."""
    make_model(tmp_path, HALF)
    items = recorded("plain")[:12]

    answers = ask(load_source(tmp_path), questions_of(items))

    for item, answer in zip(items, answers, strict=True):
        assert max(abs(item["scores"][label] - answer[label]) for label in answer) <= ROUGH_TOLERANCE
