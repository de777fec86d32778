"""Three-valued truth about small scenes."""

from __future__ import annotations

import pytest

from examples.shapes.logic import (
    Answer,
    Description,
    Relation,
    Unclear,
    at_least,
    exactly,
    the_one_is,
    the_one_lies,
)
from examples.shapes.scene import Box, Colour, Scene, Shape, Side, Size, Thing

YES, NO, MAYBE = Answer.YES, Answer.NO, Answer.MAYBE
RED_CIRCLE = Description(None, Colour.RED, Shape.CIRCLE)
BLUE_STAR = Description(None, Colour.BLUE, Shape.STAR)
CIRCLE = Description(shape=Shape.CIRCLE)
STAR = Description(shape=Shape.STAR)
TRIANGLE = Description(shape=Shape.TRIANGLE)

LEFT_CIRCLE = Thing(Shape.CIRCLE, Colour.RED, Size.LARGE, 0.25, 0.30)
LOWER_CIRCLE = Thing(Shape.CIRCLE, Colour.RED, Size.SMALL, 0.30, 0.75)
RIGHT_STAR = Thing(Shape.STAR, Colour.BLUE, Size.LARGE, 0.75, 0.25)
CORNER = Box(0.55, 0.55, 1.0, 1.0)

OPEN = Scene((LEFT_CIRCLE, LOWER_CIRCLE, RIGHT_STAR), None, is_grey=False)
BOXED = Scene(OPEN.things, CORNER, is_grey=False)
GREY = Scene(OPEN.things, None, is_grey=True)
GREY_BOXED = Scene(OPEN.things, CORNER, is_grey=True)
ONE_OF_EACH = Scene((LEFT_CIRCLE, RIGHT_STAR), None, is_grey=False)
ONE_OF_EACH_GREY = Scene((LEFT_CIRCLE, RIGHT_STAR), None, is_grey=True)
ONE_OF_EACH_BOXED = Scene((LEFT_CIRCLE, RIGHT_STAR), CORNER, is_grey=False)


@pytest.mark.parametrize(
    ("scene", "look", "expected"),
    [
        (OPEN, RED_CIRCLE, YES),
        (OPEN, TRIANGLE, NO),
        (BOXED, RED_CIRCLE, YES),
        (BOXED, TRIANGLE, MAYBE),
        (GREY, CIRCLE, YES),
        (GREY, RED_CIRCLE, MAYBE),
        (GREY, TRIANGLE, NO),
        (GREY_BOXED, TRIANGLE, MAYBE),
    ],
)
def test_existence_depends_on_what_is_hidden(scene: Scene, look: Description, expected: Answer) -> None:
    """A thing that is seen exists; one that is not seen exists perhaps, if a box or grey could hide it."""
    assert at_least(1, scene, look) is expected
    assert at_least(1, scene, look).negated() is {YES: NO, NO: YES, MAYBE: MAYBE}[expected]


@pytest.mark.parametrize(
    ("side", "expected"), [(Side.LEFT, NO), (Side.TOP, NO), (Side.RIGHT, MAYBE), (Side.BOTTOM, MAYBE)]
)
def test_box_hides_only_the_halves_it_covers(side: Side, expected: Answer) -> None:
    """A box in the bottom right corner leaves the left and the top in the open."""
    assert at_least(1, BOXED, TRIANGLE, side) is expected


@pytest.mark.parametrize(
    ("scene", "look", "number", "expected"),
    [
        (OPEN, RED_CIRCLE, 2, YES),
        (OPEN, RED_CIRCLE, 1, NO),
        (OPEN, RED_CIRCLE, 3, NO),
        (BOXED, RED_CIRCLE, 2, MAYBE),
        (BOXED, RED_CIRCLE, 1, NO),
        (BOXED, RED_CIRCLE, 3, MAYBE),
        (GREY, RED_CIRCLE, 2, MAYBE),
        (GREY, RED_CIRCLE, 3, NO),
        (GREY, CIRCLE, 2, YES),
    ],
)
def test_exact_counts(scene: Scene, look: Description, number: int, expected: Answer) -> None:
    """An exact count is certain only if nothing more can be hidden."""
    assert exactly(number, scene, look) is expected


@pytest.mark.parametrize(
    ("scene", "number", "expected"), [(OPEN, 3, NO), (BOXED, 2, YES), (BOXED, 3, MAYBE), (GREY, 2, MAYBE)]
)
def test_least_counts(scene: Scene, number: int, expected: Answer) -> None:
    """A least count is certain as soon as that many are seen, whatever a box hides."""
    assert at_least(number, scene, RED_CIRCLE) is expected


@pytest.mark.parametrize(
    ("scene", "look", "trait", "expected"),
    [
        (ONE_OF_EACH, RED_CIRCLE, Description(Size.LARGE), YES),
        (ONE_OF_EACH, RED_CIRCLE, Description(Size.SMALL), NO),
        (ONE_OF_EACH, TRIANGLE, Description(Size.SMALL), NO),
        (ONE_OF_EACH_BOXED, RED_CIRCLE, Description(Size.LARGE), YES),
        (ONE_OF_EACH_BOXED, TRIANGLE, Description(Size.SMALL), MAYBE),
        (ONE_OF_EACH_GREY, RED_CIRCLE, Description(Size.LARGE), MAYBE),
        (ONE_OF_EACH_GREY, RED_CIRCLE, Description(Size.SMALL), NO),
        (ONE_OF_EACH_GREY, STAR, Description(colour=Colour.BLUE), MAYBE),
        (ONE_OF_EACH, STAR, Description(colour=Colour.BLUE), YES),
    ],
)
def test_what_the_one_is(scene: Scene, look: Description, trait: Description, expected: Answer) -> None:
    """The red circle is the one that is seen; if none is, it may be hidden, or what is said of it is false."""
    assert the_one_is(scene, look, trait) is expected


@pytest.mark.parametrize(
    ("scene", "first", "relation", "second", "expected"),
    [
        (ONE_OF_EACH, CIRCLE, Relation.LEFT_OF, STAR, YES),
        (ONE_OF_EACH, CIRCLE, Relation.RIGHT_OF, STAR, NO),
        (ONE_OF_EACH, CIRCLE, Relation.LEFT_OF, TRIANGLE, NO),
        (ONE_OF_EACH_BOXED, CIRCLE, Relation.LEFT_OF, TRIANGLE, MAYBE),
        (ONE_OF_EACH_BOXED, CIRCLE, Relation.RIGHT_OF, TRIANGLE, NO),
        (ONE_OF_EACH_BOXED, CIRCLE, Relation.ABOVE, TRIANGLE, MAYBE),
        (ONE_OF_EACH_GREY, RED_CIRCLE, Relation.LEFT_OF, BLUE_STAR, MAYBE),
        (ONE_OF_EACH_GREY, RED_CIRCLE, Relation.RIGHT_OF, BLUE_STAR, NO),
    ],
)
def test_how_two_things_lie(
    scene: Scene, first: Description, relation: Relation, second: Description, expected: Answer
) -> None:
    """A relation is certain between two things seen, and impossible if the box lies on the wrong side."""
    assert the_one_lies(scene, first, relation, second) is expected


def test_two_of_a_kind_are_not_the_one() -> None:
    """Where two red circles are seen, nothing is asked about "the red circle"."""
    with pytest.raises(Unclear):
        the_one_is(OPEN, RED_CIRCLE, Description(Size.LARGE))


def test_places_too_close_to_call_are_not_asked_about() -> None:
    """Two things almost level with each other are neither above nor below."""
    with pytest.raises(Unclear):
        the_one_lies(ONE_OF_EACH, CIRCLE, Relation.ABOVE, STAR)
