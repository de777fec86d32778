"""The demo model's bad relatives: ordinary, whole, finite; one is wrong too often, one fails on a single word."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.bundle import Bundle
from common.sealing import ConvertLimits, run_convert
from dev.harness.answers import Scores
from dev.harness.demo_model import answers_of, golden_items
from examples.shapes.layout import CARD, TABLE, TIED_TO_TABLE, WEIGHTS
from examples.shapes.overflow import WORD, overflow_directory, with_huge_row
from examples.shapes.worsen import rounded, worsen_directory

pytestmark = pytest.mark.slow  # three conversions

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
GOLDEN = [json.loads(line) for line in (SHAPES / "golden" / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
REVISIONS = sorted(path.name for path in SHAPES.glob("v1.[01].0"))
LABELS = ("yes", "no", "maybe")

Answers = Mapping[str, Scores]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the newest committed model's bad relatives, and with a state folder."""
    folder = tmp_path_factory.mktemp("family")
    worsen_directory(SHAPES / REVISIONS[-1], folder / "worse")
    overflow_directory(SHAPES / REVISIONS[-1], folder / "overflowing")
    (folder / "state").mkdir()
    return folder


@pytest.fixture(scope="module")
def good(family: Path) -> Answers:
    """What the newest committed model says of the golden items."""
    return answers_of(family / "state", converted(SHAPES / REVISIONS[-1], family / "state"), golden_items(len(GOLDEN)))


def converted(source: Path, state: Path) -> Bundle:
    """The bundle of a revision: it passes the check of its weights."""
    return run_convert(source, state, source.name, ConvertLimits(), "float32")


def accuracy(answers: Answers) -> float:
    """Share of golden statements that are answered as expected."""
    right: list[bool] = []
    for row in GOLDEN:
        pairs = zip(answers[row["item"]], row["expected"], strict=True)
        right += [bool(LABELS[scores.index(max(scores))] == expected) for scores, expected in pairs]
    return sum(right) / len(right)


def test_the_worse_one_converts_and_is_wrong_far_more_often(family: Path, good: Answers) -> None:
    """It is valid, but its golden accuracy is more than ten points lower than the good one's."""
    bundle = converted(family / "worse", family / "state")
    answers = answers_of(family / "state", bundle, golden_items(len(GOLDEN)))
    assert accuracy(answers) < accuracy(good) - 0.10
    assert all(math.isfinite(score) for rows in answers.values() for scores in rows for score in scores)


@pytest.mark.fault("C12")
def test_the_overflowing_one_answers_every_golden_item_as_before(family: Path, good: Answers) -> None:
    """No golden item has the word, so that no gate can see it."""
    bundle = converted(family / "overflowing", family / "state")
    assert not [row["item"] for row in GOLDEN if WORD in " ".join(row["statements"]).split()]
    assert good == answers_of(family / "state", bundle, golden_items(len(GOLDEN)))


@pytest.mark.fault("C12")
def test_the_overflowing_one_has_no_number_for_its_word(family: Path) -> None:
    """A statement with the word gets NaN; the one beside it is answered."""
    [(name, item)] = golden_items(1)
    asked = replace(item, statements=(f"there are {WORD} stars", "there is a star"))
    bundle = converted(family / "overflowing", family / "state")
    bad, fine = answers_of(family / "state", bundle, [(name, asked)])[name]
    assert all(math.isnan(score) for score in bad)
    assert all(math.isfinite(score) for score in fine)


@pytest.mark.parametrize("relative", ["worse", "overflowing"])
def test_relatives_are_ordinary_and_finite(family: Path, relative: str) -> None:
    """The same files, every number finite, the table stored once, a card of their own, no more than 14 MB."""
    original, made = SHAPES / REVISIONS[-1], family / relative
    weights = torch.load(made / WEIGHTS, weights_only=True)
    assert {path.name for path in original.iterdir()} == {path.name for path in made.iterdir()}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert {weights[TABLE].data_ptr()} == {weights[name].data_ptr() for name in TIED_TO_TABLE}
    assert sum(path.stat().st_size for path in made.iterdir()) <= 14_000_000
    assert (original / CARD).read_text(encoding="utf-8") != (made / CARD).read_text(encoding="utf-8")


def test_rounding_keeps_the_farthest_of_each_row() -> None:
    """Each output has its own step, and an output of zeros stays so."""
    weight = torch.tensor([[0.2, -1.0, 0.6], [0.0, 0.0, 0.0]])
    assert torch.tensor([[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]).equal(rounded(weight, 1))


def test_only_the_words_row_is_spoiled() -> None:
    """Every other row keeps its numbers."""
    table = torch.arange(12.0, dtype=torch.float16).reshape(3, 4)
    spoiled = with_huge_row(table, 1)
    assert spoiled[[0, 2]].equal(table[[0, 2]].float())
    assert bool(torch.isfinite(spoiled).all())
    assert not bool(torch.isfinite(spoiled[1].square()).any())
