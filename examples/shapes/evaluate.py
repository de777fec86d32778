"""Measure a model directory through the stock pipeline, and write its model card.

`python -m examples.shapes.evaluate FOLDER VERSION --eyes eyes.pt` in the parity environment. Each evaluation item has a
picture of its own that no training has seen. Writes `FOLDER/README.md`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from examples.shapes.baselines import picture_only, text_only
from examples.shapes.card import Card, write_card
from examples.shapes.dataset import Item, Part, items
from examples.shapes.eyes import look
from examples.shapes.model import OFAModel, build, load_eyes
from examples.shapes.reading import Class
from examples.shapes.statements import Kind
from examples.shapes.tensors import make_examples
from examples.shapes.train import STATEMENTS_PER_KIND

# isort: split
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

ITEMS = 6_000
BASELINE_PICTURES = 24_000
Predictor = Callable[[Image.Image, str], str]


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers and questions, by kind."""

    right: Counter[Kind]
    asked: Counter[Kind]


def main() -> None:
    """Measure and write the card."""
    parser = argparse.ArgumentParser(description="Measure a demo model and write its card.")
    parser.add_argument("folder", type=Path, help="the model directory, as the training wrote it")
    parser.add_argument("version", help="as the card shall name it")
    parser.add_argument("--eyes", type=Path, required=True, help="eyes.pt of the training, for the baselines")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    score = measure(stock_pipeline(arguments.folder), evaluation_items())
    model = build(0)
    load_eyes(model, torch.load(arguments.eyes, weights_only=True))
    text, picture = measure_baselines(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = Card(arguments.version, arguments.folder.name, parameters, score.right, score.asked, text, picture)
    write_card(arguments.folder, card)
    print((arguments.folder / "README.md").read_text(encoding="utf-8"))


def evaluation_items() -> Iterable[Item]:
    """One run of items with a picture and a statement each."""
    return items(Part.EVALUATION, 0, ITEMS, per_kind=0)


def stock_pipeline(folder: Path) -> Predictor:
    """Load a directory into the stock pipeline on the CPU."""
    answers = pipeline(Tasks.visual_entailment, model=str(folder.resolve()), device="cpu")

    def ask(picture: Image.Image, text: str) -> str:
        return str(answers({"image": picture, "text": text})["labels"])

    return ask


def measure(ask: Predictor, questions: Iterable[Item]) -> Score:
    """Predictor every statement and count the right answers."""
    score = Score(Counter(), Counter())
    for item in questions:
        picture = item.picture()
        for statement in item.statements:
            score.asked[statement.kind] += 1
            score.right[statement.kind] += ask(picture, statement.text) == statement.answer
    return score


def measure_baselines(model: OFAModel) -> tuple[int, int]:
    """How many evaluation items trained classifiers get right from the text alone and from the picture alone."""
    training = make_examples(Part.TRAINING, BASELINE_PICTURES, STATEMENTS_PER_KIND)
    asked = make_examples(Part.EVALUATION, ITEMS, 0, run_pictures=ITEMS)
    taught = Class(look(model, training.pictures), training)
    unseen = Class(look(model, asked.pictures), asked)
    return text_only(taught, unseen), picture_only(taught, unseen)


if __name__ == "__main__":
    main()
