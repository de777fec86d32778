"""Three-valued truth about a scene: certain, impossible, or hidden.

A statement is *yes* if it holds however the hidden part looks, *no* if it never holds, and *maybe* if it depends on
what a box or a missing colour hides. A box may hide any number of things of any look.

"The red circle" supposes that there is at most one: the box then hides no second one. If none is seen and none can
be hidden, what is said about it is false.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from examples.shapes.scene import RADIUS, Box, Colour, Scene, Shape, Side, Size, Thing


class Answer(enum.StrEnum):
    """What can be said about a statement; the value is the model's word."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"

    def negated(self) -> Answer:
        """Answer to the opposite statement."""
        return {Answer.YES: Answer.NO, Answer.NO: Answer.YES, Answer.MAYBE: Answer.MAYBE}[self]


class Relation(enum.StrEnum):
    """How one thing lies to another; the value is its wording."""

    LEFT_OF = "left of"
    RIGHT_OF = "right of"
    ABOVE = "above"
    BELOW = "below"


class Unclear(Exception):
    """The statement is not worth asking about this scene: too close to call, or "the" with two of them."""


@dataclass(frozen=True, slots=True)
class Description:
    """The look of a thing; None leaves a feature open."""

    size: Size | None = None
    colour: Colour | None = None
    shape: Shape | None = None

    def may_fit(self, thing: Thing, *, is_grey: bool) -> bool:
        """Whether the thing fits, as far as can be seen."""
        return (
            self.size in (None, thing.size)
            and self.shape in (None, thing.shape)
            and (is_grey or self.colour in (None, thing.colour))
        )

    def surely_fits(self, thing: Thing, *, is_grey: bool) -> bool:
        """Whether the thing fits and that can be seen."""
        return self.may_fit(thing, is_grey=is_grey) and not (is_grey and self.colour is not None)


CLEAR_DISTANCE = 0.1  # centres nearer than this along the axis of a relation are too close to call


def how_many(scene: Scene, look: Description, side: Side | None = None) -> tuple[int, float]:
    """Least and greatest possible number of such things, infinity where a box may hide more."""
    near = [thing for thing in scene.things if side is None or thing.is_on(side)]
    least = sum(look.surely_fits(thing, is_grey=scene.is_grey) for thing in near)
    most = sum(look.may_fit(thing, is_grey=scene.is_grey) for thing in near)
    hides = scene.box is not None and (side is None or scene.box.covers_some_of(side))
    return least, math.inf if hides else most


def at_least(number: int, scene: Scene, look: Description, side: Side | None = None) -> Answer:
    """Judge "there are at least `number` such things"."""
    least, most = how_many(scene, look, side)
    if least >= number:
        return Answer.YES
    return Answer.NO if most < number else Answer.MAYBE


def exactly(number: int, scene: Scene, look: Description) -> Answer:
    """Judge "there are exactly `number` such things"."""
    least, most = how_many(scene, look)
    if least == most == number:
        return Answer.YES
    return Answer.MAYBE if least <= number <= most else Answer.NO


def the_one_is(scene: Scene, look: Description, trait: Description) -> Answer:
    """Judge "the `look` is `trait`", as in "the red circle is large".

    Raises:
        Unclear: two such things are seen.
    """
    known, possible = _referents(scene, look)
    if known is not None:
        if trait.surely_fits(known, is_grey=scene.is_grey):
            return Answer.YES
        return Answer.MAYBE if trait.may_fit(known, is_grey=scene.is_grey) else Answer.NO
    could_be = any(trait.may_fit(thing, is_grey=scene.is_grey) for thing in possible)
    return Answer.MAYBE if could_be or scene.box is not None else Answer.NO


def the_one_lies(scene: Scene, first: Description, relation: Relation, second: Description) -> Answer:
    """Judge "the `first` is left of the `second`".

    Raises:
        Unclear: two of a kind are seen, or places are too close to call.
    """
    known_first, possible_first = _referents(scene, first)
    known_second, possible_second = _referents(scene, second)
    box: list[Thing | Box] = [scene.box] if scene.box is not None else []
    firsts: list[Thing | Box] = [known_first] if known_first else [*possible_first, *box]
    seconds: list[Thing | Box] = [known_second] if known_second else [*possible_second, *box]
    could_be = [_may_lie(a, relation, b) for a in firsts for b in seconds if a is not b or isinstance(a, Box)]
    if not any(could_be):
        return Answer.NO
    return Answer.YES if known_first and known_second else Answer.MAYBE


def _referents(scene: Scene, look: Description) -> tuple[Thing | None, list[Thing]]:
    """The seen thing that "the …" means, if that is certain; else those that it may mean."""
    known = [thing for thing in scene.things if look.surely_fits(thing, is_grey=scene.is_grey)]
    if len(known) > 1:
        message = "two such things are seen"
        raise Unclear(message)
    if known:
        return known[0], []
    return None, [thing for thing in scene.things if look.may_fit(thing, is_grey=scene.is_grey)]


def _may_lie(first: Thing | Box, relation: Relation, second: Thing | Box) -> bool:
    across = relation in (Relation.LEFT_OF, Relation.RIGHT_OF)
    least_a, most_a = _span(first, across=across)
    least_b, most_b = _span(second, across=across)
    before = relation in (Relation.LEFT_OF, Relation.ABOVE)
    gap = most_b - least_a if before else most_a - least_b  # the greatest lead the first can have
    if abs(gap) < CLEAR_DISTANCE:
        message = "too close to call"
        raise Unclear(message)
    return gap > 0


def _span(place: Thing | Box, *, across: bool) -> tuple[float, float]:
    """Where the centre may be, along one axis."""
    if isinstance(place, Thing):
        centre = place.x if across else place.y
        return centre, centre
    start, end = (place.left, place.right) if across else (place.top, place.bottom)
    return start + RADIUS[Size.SMALL], end - RADIUS[Size.SMALL]
