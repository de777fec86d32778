"""Pictures with statements, balanced so that neither the text nor the picture alone gives the answer away.

Within a part, every wording (a statement with its colours and shapes left open) is answered yes, no and maybe equally
often, and the six kinds come equally often. A part is made from its name and number alone: the same anywhere.
"""

from __future__ import annotations

import enum
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from examples.shapes.draw import draw
from examples.shapes.logic import Answer
from examples.shapes.scene import Scene, make_scene
from examples.shapes.statements import Kind, Statement, say

KINDS = tuple(Kind)
_TRIES = 25  # to find a statement of the kind that the balance wants
_SLACK = 1  # answers of a wording may differ by this many
_SIDES_PIXELS = (96, 128, 192)


class Part(enum.StrEnum):
    """What pictures are for; no two parts share a picture."""

    TRAINING = "training"
    DEVELOPMENT = "development"
    EVALUATION = "evaluation"
    GOLDEN = "golden"
    PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to be drawn, and statements about it."""

    scene: Scene
    seed: int  # of the drawing
    side_pixels: int
    statements: tuple[Statement, ...]

    def picture(self) -> Image.Image:
        """Draw the picture: RGB, `side_pixels` wide and high."""
        return draw(self.scene, self.side_pixels, self.seed)


class Balance:
    """Keeps the three answers of every wording equally frequent."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said: dict[str, dict[Answer, int]] = defaultdict(lambda: dict.fromkeys(Answer, 0))

    def takes(self, statement: Statement) -> bool:
        """Count the statement in, unless its answer is ahead of the others already."""
        said = self._said[statement.wording]
        if said[statement.answer] > min(said.values()) + _SLACK - 1:
            return False
        said[statement.answer] += 1
        return True


def items(part: Part, number: int, pictures: int, per_kind: int = 2) -> Iterator[Item]:
    """Make a balanced run of items.

    Args:
        part: what the pictures are for.
        number: which run of this part; runs are independent of each other.
        pictures: how many pictures.
        per_kind: statements of each kind for a picture, at most; 0 gives one statement, the kinds in turn.
    """
    balance = Balance()
    index = made = 0
    while made < pictures:
        rng = random.Random(f"{part}:{number}:{index}")
        scene = make_scene(rng)
        seed, side_pixels = rng.getrandbits(48), rng.choice(_SIDES_PIXELS)
        wanted = KINDS * per_kind if per_kind else (KINDS[made % len(KINDS)],)
        found = [_find(rng, scene, kind, balance) for kind in wanted]
        statements = tuple(statement for statement in found if statement is not None)
        index += 1
        if statements:
            made += 1
            yield Item(scene, seed, side_pixels, statements)


def _find(rng: random.Random, scene: Scene, kind: Kind, balance: Balance) -> Statement | None:
    for _ in range(_TRIES):
        statement = say(rng, scene, kind)
        if statement is not None and balance.takes(statement):
            return statement
    return None
