"""What a picture shows: a few things, sometimes a grey box that hides a part, sometimes no colours.

Lengths are fractions of the picture's side; x runs to the right and y downwards, both from 0 to 1. A scene holds
only what can be seen. What a box hides is in no scene: nobody who looks at the picture can know it, so no answer may
depend on it.
"""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass

MOST_THINGS = 5
_MIDLINE = 0.5


class Shape(enum.StrEnum):
    """The form of a thing; the value is its word."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"


class Colour(enum.StrEnum):
    """The colour of a thing; the value is its word."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"


class Size(enum.StrEnum):
    """The size of a thing; the value is its word."""

    SMALL = "small"
    LARGE = "large"


class Side(enum.StrEnum):
    """One half of the picture."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"


RADIUS = {Size.SMALL: 0.075, Size.LARGE: 0.14}
_SHARE_GREY = 0.2
_SHARE_BOXED = {False: 0.66, True: 0.3}  # by "the picture is grey"
_SHARE_HALF_BOX = 0.5
_SHARE_REPEATED = 0.5  # equal things make counting worth while
_PLACES_TRIED = 40


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape that is seen whole."""

    shape: Shape
    colour: Colour  # what it would be in colour; a grey picture does not show it
    size: Size
    x: float  # centre
    y: float

    def is_on(self, side: Side) -> bool:
        """Whether the thing lies in that half; no thing lies on a midline."""
        return {
            Side.LEFT: self.x < _MIDLINE,
            Side.RIGHT: self.x > _MIDLINE,
            Side.TOP: self.y < _MIDLINE,
            Side.BOTTOM: self.y > _MIDLINE,
        }[side]


@dataclass(frozen=True, slots=True)
class Box:
    """A grey rectangle which may hide any number of whole things."""

    left: float
    top: float
    right: float
    bottom: float

    def covers_some_of(self, side: Side) -> bool:
        """Whether a thing in that half could be hidden here."""
        return {
            Side.LEFT: self.left < _MIDLINE,
            Side.RIGHT: self.right > _MIDLINE,
            Side.TOP: self.top < _MIDLINE,
            Side.BOTTOM: self.bottom > _MIDLINE,
        }[side]


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a picture shows."""

    things: tuple[Thing, ...]  # one to five
    box: Box | None
    is_grey: bool


def make_scene(rng: random.Random) -> Scene:
    """Invent a scene; the same state of `rng` gives the same scene."""
    is_grey = rng.random() < _SHARE_GREY
    box = _make_box(rng) if rng.random() < _SHARE_BOXED[is_grey] else None
    things: list[Thing] = []
    wanted = rng.randint(1, MOST_THINGS)
    tries = 0
    while tries < wanted or not things:
        thing = _place(rng, _look(rng, things), things, box)
        if thing is not None:
            things.append(thing)
        tries += 1
    return Scene(tuple(things), box, is_grey)


def _make_box(rng: random.Random) -> Box:
    width, height = rng.uniform(0.40, 0.48), rng.uniform(0.40, 0.48)
    if rng.random() < _SHARE_HALF_BOX:
        width, height = rng.choice(((width, 1.0), (1.0, height)))
    left = rng.choice((0.0, 1.0 - width))
    top = rng.choice((0.0, 1.0 - height))
    return Box(left, top, left + width, top + height)


_SHAPES, _COLOURS, _SIZES = tuple(Shape), tuple(Colour), tuple(Size)


def _look(rng: random.Random, things: list[Thing]) -> tuple[Shape, Colour, Size]:
    shape, colour, size = rng.choice(_SHAPES), rng.choice(_COLOURS), rng.choice(_SIZES)
    if things and rng.random() < _SHARE_REPEATED:
        shape = rng.choice(things).shape
    if things and rng.random() < _SHARE_REPEATED:
        colour = rng.choice(things).colour
    return shape, colour, size


def _place(rng: random.Random, look: tuple[Shape, Colour, Size], others: list[Thing], box: Box | None) -> Thing | None:
    shape, colour, size = look
    room = RADIUS[size] * 1.1
    for _ in range(_PLACES_TRIED):
        x, y = rng.uniform(room, 1 - room), rng.uniform(room, 1 - room)
        if min(abs(x - _MIDLINE), abs(y - _MIDLINE)) < room:
            continue
        if box is not None and _is_near(box, x, y, room + 0.01):
            continue
        if all(math.hypot(x - o.x, y - o.y) > room + RADIUS[o.size] * 1.1 + 0.01 for o in others):
            return Thing(shape, colour, size, x, y)
    return None


def _is_near(box: Box, x: float, y: float, distance: float) -> bool:
    inside_across = box.left - distance < x < box.right + distance
    inside_down = box.top - distance < y < box.bottom + distance
    return inside_across and inside_down
