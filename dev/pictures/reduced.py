"""Measure what decoding large JPEGs at reduced size changes: pixels, and the demo model's answers.

    python -m dev.pictures.reduced

The set: the demo's golden pictures, and drawn ones with soft and hard edges and noise, enlarged to a size of each
reduction, as JPEGs of several qualities, samplings and modes.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from dev.harness.demo_model import SHAPES, golden_items
from dev.parity.ours import load_source
from dev.parity.pictures import draw
from inference.runner.engines.base import EntailmentItem, Pixels, RowRange
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.pictures.decode import plan_picture, render
from inference.runner.pictures.options import PictureOptions
from inference.wire import EntailmentScores

FULL, REDUCED = PictureOptions(may_reduce=False), PictureOptions()
SIDE = 480  # of the drawn pictures; the demo model's own is smaller
QUALITIES = (75, 95)
WAYS: tuple[dict[str, object], ...] = ({}, {"progressive": True}, {"subsampling": 0})


@dataclass(frozen=True, slots=True)
class Change:
    """What reduction changes of one picture."""

    reduction: int
    highest: int  # of 255
    mean: float
    probability: float = 0.0  # the largest change of one
    is_flipped: bool = False  # another answer is the most probable


def drawn_pictures(sides: tuple[int, ...] = (1921, 2400, 3845)) -> Iterator[tuple[str, bytes]]:
    """Name and file: sizes just above the limits of a reduction by 2 and 4, and one between."""
    for number, (side, quality, mode) in enumerate(itertools.product(sides, QUALITIES, ("RGB", "L", "CMYK"))):
        picture = draw(number, side, side * 3 // 4 + side // 4).convert(mode)
        way = WAYS[number % len(WAYS)]
        yield f"{mode} {side} quality {quality} {way}", _encode(picture, quality, **way)


def compare_pixels(content: bytes, side: int = SIDE) -> Change:
    """Compare both ways of decoding."""
    plan = plan_picture(content, side, REDUCED)
    reduced, full = (_decode(content, side, options) for options in (REDUCED, FULL))
    distance = np.abs(reduced.astype(int) - full)
    return Change(plan.reduction, int(distance.max()), float(distance.mean()))


def main() -> int:
    """Print both measurements."""
    drawn = [(name, compare_pixels(content)) for name, content in drawn_pictures()]
    for name, change in drawn:
        print(f"{name:50} 1/{change.reduction}: at most {change.highest}, {change.mean:.2f} on average")
    engine = load_source(SHAPES / "v1.0.0")
    answers = [change for reduction in (2, 4, 8) for change in _compare_answers(engine, reduction)]
    print(json.dumps({"drawn": _summary([change for _, change in drawn]), "demo model": _summary(answers)}, indent=1))
    return 0


def _compare_answers(engine: OfaEngine, reduction: int) -> Iterator[Change]:
    side = engine.pictures.side
    for name, asked in golden_items(40):
        small = Image.open(BytesIO(asked.image)).convert("RGB")
        large = small.resize((2 * side * reduction + 3, 2 * side * reduction + 40), Image.Resampling.BICUBIC)
        content = _encode(large, 85)
        pixels = [_decode(content, side, options) for options in (REDUCED, FULL)]
        scores = [_ask(engine, asked.statements, one) for one in pixels]
        distance = np.abs(pixels[0].astype(int) - pixels[1])
        flipped = bool((scores[0].argmax(1) != scores[1].argmax(1)).any())
        found = plan_picture(content, side, REDUCED).reduction
        if found != reduction:
            raise RuntimeError(f"{name} was reduced by {found}, not by {reduction}")
        probability = float(np.abs(scores[0] - scores[1]).max())
        yield Change(reduction, int(distance.max()), float(distance.mean()), probability, flipped)


def _ask(engine: OfaEngine, statements: tuple[str, ...], pixels: Pixels) -> np.ndarray:
    prepared = engine.prepare(EntailmentItem(pixels.tobytes(), statements, "", pixels))
    [results] = engine.compute([RowRange(prepared, 0, prepared.rows)])
    return np.array([[one.yes, one.no, one.maybe] for one in results if isinstance(one, EntailmentScores)])


def _summary(changes: list[Change]) -> dict[str, float]:
    return {
        "pictures": len(changes),
        "highest pixel": max(change.highest for change in changes),
        "mean pixel": round(float(np.mean([change.mean for change in changes])), 3),
        "highest probability": round(max(change.probability for change in changes), 5),
        "flipped": sum(change.is_flipped for change in changes),
    }


def _decode(content: bytes, side: int, options: PictureOptions) -> Pixels:
    return np.asarray(render(plan_picture(content, side, options), options.rendering))


def _encode(image: Image.Image, quality: int, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
