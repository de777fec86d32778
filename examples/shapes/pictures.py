"""Write the pictures of the documentation: `python -m examples.shapes.pictures FOLDER`.

Beside them stands `statements.tsv`: picture, true answer, statement.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from examples.shapes.draw import draw
from examples.shapes.logic import Answer, Description, Relation, at_least, exactly, the_one_is, the_one_lies
from examples.shapes.scene import Box, Colour, Scene, Shape, Side, Size, Thing

SIDE_PIXELS = 192
_SEED = 4
RED_CIRCLE = Description(None, Colour.RED, Shape.CIRCLE)
BLUE_STAR = Description(None, Colour.BLUE, Shape.STAR)
YELLOW_SQUARE = Description(None, Colour.YELLOW, Shape.SQUARE)
TRIANGLE = Description(shape=Shape.TRIANGLE)


@dataclass(frozen=True, slots=True)
class Page:
    """A picture and what can be said about it."""

    name: str
    scene: Scene
    said: tuple[tuple[str, Answer], ...]


def main() -> None:
    """Write the pictures and their statements."""
    parser = argparse.ArgumentParser(description="Write the pictures of the documentation.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for page in (two_red_circles(), half_hidden(), without_colours()):
        draw(page.scene, SIDE_PIXELS, _SEED, noise_sigma=0.0).save(folder / page.name, optimize=True)
        lines += [f"{page.name}\t{answer}\t{text}\n" for text, answer in page.said]
    (folder / "statements.tsv").write_text("".join(lines), encoding="utf-8")


def two_red_circles() -> Page:
    """Everything can be seen."""
    scene = Scene(
        (
            Thing(Shape.CIRCLE, Colour.RED, Size.LARGE, 0.25, 0.30),
            Thing(Shape.CIRCLE, Colour.RED, Size.SMALL, 0.34, 0.74),
            Thing(Shape.STAR, Colour.BLUE, Size.LARGE, 0.74, 0.68),
            Thing(Shape.SQUARE, Colour.YELLOW, Size.SMALL, 0.68, 0.24),
        ),
        None,
        is_grey=False,
    )
    said = (
        ("there are two red circles", exactly(2, scene, RED_CIRCLE)),
        ("there are three red circles", exactly(3, scene, RED_CIRCLE)),
        ("there is a blue star", at_least(1, scene, BLUE_STAR)),
        ("there is no triangle", at_least(1, scene, TRIANGLE).negated()),
        ("the yellow square is large", the_one_is(scene, YELLOW_SQUARE, Description(Size.LARGE))),
        ("there is a blue star on the left", at_least(1, scene, BLUE_STAR, Side.LEFT)),
    )
    return Page("two-red-circles.png", scene, said)


def half_hidden() -> Page:
    """A box hides what might be in a corner."""
    scene = Scene(
        (
            Thing(Shape.CIRCLE, Colour.RED, Size.LARGE, 0.26, 0.26),
            Thing(Shape.CIRCLE, Colour.RED, Size.LARGE, 0.25, 0.74),
            Thing(Shape.TRIANGLE, Colour.GREEN, Size.LARGE, 0.74, 0.27),
        ),
        Box(0.55, 0.55, 1.0, 1.0),
        is_grey=False,
    )
    said = (
        ("there are at least two red circles", at_least(2, scene, RED_CIRCLE)),
        ("there are two red circles", exactly(2, scene, RED_CIRCLE)),
        ("there is one red circle", exactly(1, scene, RED_CIRCLE)),
        ("there is a blue star", at_least(1, scene, BLUE_STAR)),
        ("the triangle is green", the_one_is(scene, TRIANGLE, Description(colour=Colour.GREEN))),
    )
    return Page("half-hidden.png", scene, said)


def without_colours() -> Page:
    """Shapes can be told, colours cannot."""
    scene = Scene(
        (
            Thing(Shape.CIRCLE, Colour.RED, Size.LARGE, 0.27, 0.28),
            Thing(Shape.STAR, Colour.BLUE, Size.LARGE, 0.73, 0.30),
            Thing(Shape.SQUARE, Colour.GREEN, Size.SMALL, 0.30, 0.75),
        ),
        None,
        is_grey=True,
    )
    star, circle = Description(shape=Shape.STAR), Description(shape=Shape.CIRCLE)
    said = (
        ("there is a star", at_least(1, scene, star)),
        ("there is a blue star", at_least(1, scene, BLUE_STAR)),
        ("there are two circles", exactly(2, scene, circle)),
        ("the star is right of the circle", the_one_lies(scene, star, Relation.RIGHT_OF, circle)),
        ("the circle is red", the_one_is(scene, circle, Description(colour=Colour.RED))),
    )
    return Page("without-colours.png", scene, said)


if __name__ == "__main__":
    main()
