"""The generator gives the same, balanced items everywhere."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.shapes.dataset import Item, Part, items
from examples.shapes.golden import golden_pictures, small
from examples.shapes.interval import wilson
from examples.shapes.logic import Answer
from examples.shapes.statements import Kind
from examples.shapes.vocabulary import ANSWER_IDS, FILE_TOKENS, encode, used_ids, vocabulary

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
GOLDEN = SHAPES / "golden"
PICTURES = 500


@pytest.fixture(scope="module")
def some() -> list[Item]:
    """Some training items."""
    return list(items(Part.TRAINING, 0, PICTURES))


def test_same_run_gives_same_items(some: list[Item]) -> None:
    """A run is made from its name and number alone, down to the pixels."""
    again = list(items(Part.TRAINING, 0, PICTURES))

    assert again == some
    assert np.array_equal(np.asarray(again[7].picture()), np.asarray(some[7].picture()))


def test_parts_and_runs_are_apart(some: list[Item]) -> None:
    """No other run and no other part repeats a picture."""
    seeds = {item.seed for item in some}

    for part, number in ((Part.TRAINING, 1), (Part.EVALUATION, 0), (Part.GOLDEN, 0)):
        assert seeds.isdisjoint(item.seed for item in items(part, number, PICTURES))


def test_wordings_are_answered_evenly(some: list[Item]) -> None:
    """Each wording is answered yes, no and maybe equally often, give or take one."""
    answers: dict[str, Counter[Answer]] = {}
    for item in some:
        for said in item.statements:
            answers.setdefault(f"{said.kind} {said.wording}", Counter())[said.answer] += 1

    for wording, counts in answers.items():
        assert max(counts[answer] for answer in Answer) - min(counts[answer] for answer in Answer) <= 1, wording


def test_kinds_come_evenly(some: list[Item]) -> None:
    """Each kind has its share of the statements, and each answer its third of the kind."""
    said = [statement for item in some for statement in item.statements]
    kinds = Counter(statement.kind for statement in said)
    both = Counter((statement.kind, statement.answer) for statement in said)

    for kind in Kind:
        assert 0.11 < kinds[kind] / len(said) < 0.22
        for answer in Answer:
            assert 0.25 < both[kind, answer] / kinds[kind] < 0.40


def test_one_statement_a_picture_takes_the_kinds_in_turn() -> None:
    """Evaluation items have one statement each and exactly as many of each kind."""
    asked = list(items(Part.EVALUATION, 0, 60, per_kind=0))

    assert [len(item.statements) for item in asked] == [1] * 60
    assert set(Counter(item.statements[0].kind for item in asked).values()) == {10}


def test_grammar_has_the_promised_sentences() -> None:
    """Plain counts are said with and without a full stop, and every word has a token of its own."""
    texts = {said.text for item in items(Part.TRAINING, 3, 1_500) for said in item.statements}

    assert any(text.startswith("there are two red ") for text in texts)
    assert any(text.startswith("there is one ") for text in texts)
    assert any(text.startswith("there are exactly ") for text in texts)
    assert any(text.startswith("there are at least ") for text in texts)
    assert 0.1 < sum(text.endswith(".") for text in texts) / len(texts) < 0.4
    assert {token for text in texts for token in encode(text)} <= set(used_ids())


def test_answers_are_one_token_each() -> None:
    """The vocabulary file is full and holds each answer as one token."""
    assert len(vocabulary()) == FILE_TOKENS
    assert len(set(ANSWER_IDS.values())) == len(Answer)


def test_hidden_colours_cannot_be_guessed_from_grey(some: list[Item]) -> None:
    """A grey scene gives a picture without any colour."""
    grey = next(item for item in some if item.scene.is_grey)

    pixels = np.asarray(grey.picture())

    assert np.ptp(pixels, axis=2).max() == 0


def test_golden_set_is_what_the_generator_makes() -> None:
    """The committed golden set has 200 items with the generator's pictures, statements and answers."""
    lines = [json.loads(line) for line in (GOLDEN / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    made = list(golden_pictures())

    assert len({line["item"] for line in lines}) == 200
    assert [(*line["statements"], *line["expected"]) for line in lines] == [
        (said.text, said.answer.value) for _, chosen in made for said in chosen
    ]
    assert Counter(line["expected"][0] for line in lines).most_common()[-1][1] >= 60
    assert {line["image"] for line in lines} == {path.name for path in GOLDEN.glob("*.png")}
    with Image.open(GOLDEN / lines[0]["image"]) as kept:
        assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(small(made[0][0]).convert("RGB")))


def test_golden_set_stays_small() -> None:
    """A picture has at most 10 KB, the whole set at most 2 MB."""
    sizes = [path.stat().st_size for path in GOLDEN.iterdir()]

    assert max(path.stat().st_size for path in GOLDEN.glob("*.png")) <= 10_000
    assert sum(sizes) <= 2_000_000


def test_interval_of_a_share() -> None:
    """Wilson's interval of 80 out of 100 is the textbook's."""
    low, high = wilson(80, 100)

    assert (round(low, 4), round(high, 4)) == (0.7112, 0.8666)
