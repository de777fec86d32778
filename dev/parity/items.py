"""The questions for the oracle: every picture, texts of every kind, with and without premise."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.parity.pictures import PICTURES

GOLDEN = Path(__file__).resolve().parents[2] / "examples" / "shapes" / "golden"
_STATEMENTS = (
    "there are two birds.",
    "a man is reading",
    "no dog",
    "The WOMAN is standing under a RED umbrella on the street",
    "yes",
    "two people, one umbrella; 3 dogs (maybe 12)!",
    "  ...a well-known and/or half-blue   street\tscene  \n",
    "it's the dog's bird, they're red and we'll see",
    "ein Mädchen läuft über die Straße – schnell",
    "图片里有两只鸟",
    "🦜🦜 there are birds 🐕‍🦺",
    "<person> is standing in the street",
    "",
    "is there a man?",
    "a red bird in the blue umbrella of a woman standing on the street under a man reading",
    "x",
)
_PREMISES = (
    "there is a man in the street",
    "Two PEOPLE are reading - in the blue/red umbrella.",
    "鸟 and dog",
)
_LONG = (
    " ".join(f"dog {number}" for number in range(60)),
    "there are " + "birdsandmenandwomenunderumbrellas" * 9,
    "a man " * 200,
)


@dataclass(frozen=True, slots=True)
class Question:
    """One item."""

    picture: str  # name of a file
    statement: str
    premise: str


def questions() -> Iterator[Question]:
    """All items, pictures outermost; each statement and premise is used with several pictures."""
    for number, picture in enumerate(PICTURES):
        for step in range(5):
            statement = _STATEMENTS[(number + 3 * step) % len(_STATEMENTS)]
            premise = _PREMISES[(number + step) % len(_PREMISES)] if (number + step) % 3 == 0 else ""
            yield Question(picture, statement, premise)
    for statement in _LONG:
        yield Question("colour.png", statement, "")
        yield Question("wide.jpg", statement, _PREMISES[0])
    yield Question("colour.png", _STATEMENTS[0], _LONG[0])


def many_questions() -> Iterator[Question]:
    """512 items: half of all pictures × statements × premises or none, so that all kinds are combined."""
    premises = ("", *_PREMISES)
    combinations = itertools.product(PICTURES, _STATEMENTS, premises)
    for number, (picture, statement, premise) in enumerate(combinations):
        # Every second one, shifted from row to row: no statement is left without a premise or a picture.
        if (number + number // len(premises)) % 2:
            yield Question(picture, statement, premise)


FOLDER_ITEMS = 12  # questions to each folder of `compare_folders`


def questions_of_folder(*, is_trained: bool) -> list[Question]:
    """Some of all questions, for a model with random or with trained weights."""
    asked = list(golden_questions()) if is_trained else list(questions())
    return asked[:: len(asked) // FOLDER_ITEMS][:FOLDER_ITEMS]


def golden_questions() -> Iterator[Question]:
    """The demo's golden set; paths of its pictures are absolute, which a question's picture may be."""
    for line in (GOLDEN / "golden.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for statement in row["statements"]:
            yield Question(str(GOLDEN / row["image"]), statement, row.get("premise", ""))
