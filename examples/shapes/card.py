"""The model card, from measured numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.shapes.interval import wilson
from examples.shapes.statements import Kind

_WEAK = 0.85  # share of right answers below which the card warns of a kind
_CARD = """\
# Shapes {version}

A small OFA visual-entailment model: it looks at a picture of simple shapes and says whether a sentence about it is
true (`yes`), false (`no`) or cannot be told (`maybe`), because a grey box or the missing colours of a greyscale picture
hide what it depends on. It is there to try a server with and to test one; it knows nothing of photographs.

It has OFA's own architecture ({parameters} million parameters, ResNet included; weights in half precision,
{megabytes} MB) and loads like any ModelScope OFA directory.

## What it can judge

One to five shapes (circle, square, triangle, star) in five colours (red, green, blue, yellow, purple) and two sizes
(small, large) on a pale ground. "Shape" stands for any of them.

| kind | for example |
|---|---|
| existence | there is a large red circle · there is no star |
| region | there is a blue square on the left · there is no circle at the top |
| count | there are two red circles · there are at least three stars · there is exactly one square |
| size | the red circle is large |
| colour | the small star is red |
| relation | the red circle is left of the small square (also: right of, above, below) |

Sentences may end with a full stop. A box may hide any number of things; "the red circle" supposes there is only one.

## How good it is

Measured through the stock pipeline with the weights as stored, on {asked} statements, each about a picture of its own
that was in no training, with Wilson's 95 % intervals. Of every wording about a third are true, false and hidden each.

| | right | 95 % interval |
|---|---|---|
{rows}
| text only (trained classifier) | {text} | {text_interval} |
| picture only (trained classifier) | {picture} | {picture_interval} |

## Its limits

{weak}* Words other than those above mean nothing to it: it answers all the same, by chance and often with confidence.
* It was trained on pictures of 96 to 192 pixels drawn by its own generator, and sees 64 pixels.
* The premise of the two-text prompt was never trained.
* Its scores are no calibrated probabilities.

## How to make it again

    make parity
    .venv-parity/bin/python -m examples.shapes.train build/shapes
    .venv-parity/bin/python -m examples.shapes.evaluate build/shapes/{folder} {version} --eyes build/shapes/eyes.pt

The seeds are fixed, but these weights come from a training that was stopped and taken up again between lessons, and
the whole script was not run at one stretch since: expect a model of this kind, not these bits or these very numbers.
"""


@dataclass(frozen=True, slots=True)
class Card:
    """What was measured."""

    version: str
    folder: str  # that the training writes this version to
    parameters: int
    right: Mapping[Kind, int]
    asked: Mapping[Kind, int]
    right_by_text: int
    right_by_picture: int


def write_card(folder: Path, card: Card) -> None:
    """Write the model card as `README.md` of the model directory."""
    asked = sum(card.asked.values())
    rows = [_row("**all**", sum(card.right.values()), asked)]
    rows += [_row(kind, card.right[kind], card.asked[kind]) for kind in Kind]
    text = _CARD.format(
        version=card.version,
        folder=card.folder,
        parameters=f"{card.parameters / 1e6:.1f}",
        megabytes=f"{(folder / 'pytorch_model.bin').stat().st_size / 1e6:.1f}",
        asked=f"{asked:,}",
        rows="\n".join(rows),
        weak=_weak(card),
        text=f"{card.right_by_text / asked:.1%}",
        text_interval=_interval(card.right_by_text, asked),
        picture=f"{card.right_by_picture / asked:.1%}",
        picture_interval=_interval(card.right_by_picture, asked),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _weak(card: Card) -> str:
    weak = [kind.value for kind in Kind if card.right[kind] / card.asked[kind] < _WEAK]
    return f"* It has hardly learnt to judge these kinds and mostly guesses: {', '.join(weak)}.\n" if weak else ""


def _row(name: str, right: int, asked: int) -> str:
    return f"| {name} | {right / asked:.1%} | {_interval(right, asked)} |"


def _interval(right: int, asked: int) -> str:
    low, high = wilson(right, asked)
    return f"{low:.1%} to {high:.1%}"
