"""Say something about a scene, and know whether it is so.

Six kinds of statement:

* existence: "there is a large red circle", "there is no star"
* region: "there is a blue square on the left", "there is no circle at the top"
* count: "there are two red circles", "there are exactly / at least two red circles"
* size: "the red circle is large"
* colour: "the small star is red"
* relation: "the red circle is left of the small square"
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from examples.shapes.logic import (
    Answer,
    Description,
    Relation,
    Unclear,
    at_least,
    exactly,
    how_many,
    the_one_is,
    the_one_lies,
)
from examples.shapes.scene import MOST_THINGS, Colour, Scene, Shape, Side, Size, Thing


class Kind(enum.StrEnum):
    """What a statement is about."""

    EXISTENCE = "existence"
    REGION = "region"
    COUNT = "count"
    SIZE = "size"
    COLOUR = "colour"
    RELATION = "relation"


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence and the truth about it."""

    text: str
    kind: Kind
    wording: str  # the text with colours and shapes left open: statements are balanced by it
    answer: Answer
    about_seen: bool = False  # a relation of two things that are both seen


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")
PLACE_WORDS = {
    Side.LEFT: "on the left",
    Side.RIGHT: "on the right",
    Side.TOP: "at the top",
    Side.BOTTOM: "at the bottom",
}
_SHAPES, _COLOURS, _SIZES = tuple(Shape), tuple(Colour), tuple(Size)
_SIDES, _RELATIONS = tuple(Side), tuple(Relation)
_SHARE_WITH_STOP = 0.25
_SHARE_SEEN, _SHARE_CHANGED = 0.45, 0.3  # of the looks that come to mind


def say(rng: random.Random, scene: Scene, kind: Kind) -> Statement | None:
    """Say something of that kind; None if what came to mind is not worth asking about this scene."""
    try:
        statement = _SAYINGS[kind](rng, scene)
    except Unclear:
        return None
    if _happens(rng, _SHARE_WITH_STOP):
        return replace(statement, text=statement.text + ".")
    return statement


def phrase(look: Description, *, plural: bool = False) -> str:
    """Words for a look: "large red circle"; "shape" where the shape is open."""
    noun = look.shape.value if look.shape else "shape"
    words = [word.value for word in (look.size, look.colour) if word]
    return " ".join([*words, noun + ("s" if plural else "")])


def _pattern(look: Description) -> str:
    """The features that a look names, without their values."""
    return "".join(letter for letter, feature in (("S", look.size), ("C", look.colour), ("N", look.shape)) if feature)


def _happens(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def _of_seen_or_any(rng: random.Random, scene: Scene) -> tuple[Size, Colour, Shape]:
    """The full look of a thing in the picture, such a look with one feature changed, or any look."""
    chance = rng.random()
    if chance > _SHARE_SEEN + _SHARE_CHANGED:
        return rng.choice(_SIZES), rng.choice(_COLOURS), rng.choice(_SHAPES)
    thing = rng.choice(scene.things)
    size, colour, shape = thing.size, thing.colour, thing.shape
    if chance > _SHARE_SEEN:
        changed = rng.randrange(3)
        size = rng.choice(_SIZES) if changed == 0 else size
        colour = rng.choice(_COLOURS) if changed == 1 else colour
        shape = rng.choice(_SHAPES) if changed == 2 else shape
    return size, colour, shape


def _look(rng: random.Random, scene: Scene) -> Description:
    size, colour, shape = _of_seen_or_any(rng, scene)
    share_coloured = 0.55 if scene.is_grey else 0.85
    return Description(
        size if _happens(rng, 0.3) else None,
        colour if _happens(rng, share_coloured) else None,
        shape if _happens(rng, 0.88) else None,
    )


def _existence(rng: random.Random, scene: Scene) -> Statement:
    look = _look(rng, scene)
    answer = at_least(1, scene, look)
    if _happens(rng, 0.35):
        return Statement(f"there is no {phrase(look)}", Kind.EXISTENCE, f"no {_pattern(look)}", answer.negated())
    return Statement(f"there is a {phrase(look)}", Kind.EXISTENCE, f"a {_pattern(look)}", answer)


def _region(rng: random.Random, scene: Scene) -> Statement:
    look, side = _look(rng, scene), rng.choice(_SIDES)
    answer = at_least(1, scene, look, side)
    tail = f"{phrase(look)} {PLACE_WORDS[side]}"
    wording = f"{_pattern(look)} {side}"
    if _happens(rng, 0.25):
        return Statement(f"there is no {tail}", Kind.REGION, f"no {wording}", answer.negated())
    return Statement(f"there is a {tail}", Kind.REGION, f"a {wording}", answer)


def _count(rng: random.Random, scene: Scene) -> Statement:
    look = _look(rng, scene)
    if _happens(rng, 0.6):  # fewer features, more things that fit
        look = replace(look, size=None, colour=look.colour if _happens(rng, 0.6) else None)
    seen = how_many(scene, look)[0]
    number = min(MOST_THINGS, max(1, seen + rng.choice((-1, 0, 0, 1, 1))))
    adverb = rng.choice(("exactly ", "at least ", ""))
    judge = at_least if adverb == "at least " else exactly
    verb = "is" if number == 1 else "are"
    wording = f"{adverb}{number} {_pattern(look)}"
    text = f"there {verb} {adverb}{NUMBER_WORDS[number]} {phrase(look, plural=number > 1)}"
    return Statement(text, Kind.COUNT, wording, judge(number, scene, look))


def _size(rng: random.Random, scene: Scene) -> Statement:
    size, colour, shape = _of_seen_or_any(rng, scene)
    (pattern,) = rng.choices(("CN", "C", "N"), (65, 15, 20))
    look = Description(None, colour if "C" in pattern else None, shape if "N" in pattern else None)
    size = size if _happens(rng, 0.6) else rng.choice(_SIZES)
    answer = the_one_is(scene, look, Description(size=size))
    return Statement(f"the {phrase(look)} is {size}", Kind.SIZE, f"{_pattern(look)} {size}", answer)


def _colour(rng: random.Random, scene: Scene) -> Statement:
    size, colour, shape = _of_seen_or_any(rng, scene)
    (pattern,) = rng.choices(("S", "SN", "N"), (10, 40, 50))
    look = Description(size if "S" in pattern else None, None, shape if "N" in pattern else None)
    colour = colour if _happens(rng, 0.7) else rng.choice(_COLOURS)
    answer = the_one_is(scene, look, Description(colour=colour))
    return Statement(f"the {phrase(look)} is {colour}", Kind.COLOUR, f"{_pattern(look)} is", answer)


def _relation(rng: random.Random, scene: Scene) -> Statement:
    first, second, relation = _look(rng, scene), _look(rng, scene), rng.choice(_RELATIONS)
    if len(scene.things) > 1 and _happens(rng, 0.5):
        first, second = (_look_of(rng, thing, scene) for thing in rng.sample(scene.things, 2))
    if not _exclude_each_other(first, second):
        raise Unclear
    answer = the_one_lies(scene, first, relation, second)
    about_seen = all(how_many(scene, look)[0] == 1 for look in (first, second))
    text = f"the {phrase(first)} is {relation} the {phrase(second)}"
    wording = f"{_pattern(first)} {relation} {_pattern(second)}"
    return Statement(text, Kind.RELATION, wording, answer, about_seen)


def _look_of(rng: random.Random, thing: Thing, scene: Scene) -> Description:
    share_coloured = 0.3 if scene.is_grey else 0.8
    return Description(
        thing.size if _happens(rng, 0.3) else None,
        thing.colour if _happens(rng, share_coloured) else None,
        thing.shape if _happens(rng, 0.9) else None,
    )


def _exclude_each_other(first: Description, second: Description) -> bool:
    """Whether no thing can fit both, so that "the one" and "the other" are two."""
    pairs = ((first.size, second.size), (first.colour, second.colour), (first.shape, second.shape))
    return any(a is not None and b is not None and a is not b for a, b in pairs)


_SAYINGS: dict[Kind, Callable[[random.Random, Scene], Statement]] = {
    Kind.EXISTENCE: _existence,
    Kind.REGION: _region,
    Kind.COUNT: _count,
    Kind.SIZE: _size,
    Kind.COLOUR: _colour,
    Kind.RELATION: _relation,
}
