"""Count how many answers of trained models differ in bfloat16, and how close the two best answers were.

    python -m dev.parity.flips            three trained models, 1,200 questions each; needs no stock pipeline

The third model is the mean of the two published ones, which were trained one after the other.
"""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dev.parity.folders import SHAPES
from dev.parity.items import Question, golden_questions
from dev.parity.ours import Scores, ask, load_source

ITEMS = 1200
MARGINS = (0.02, 0.05, 0.1, 0.2, 0.5)  # upper ends of the classes of margins


@dataclass(frozen=True, slots=True)
class Flip:
    """One question that is answered differently in bfloat16."""

    margin: float  # between the best and the second in float32
    gap: float  # largest difference of a probability


def main() -> int:
    """Print the counts and return the exit code."""
    torch.set_num_threads(1)
    asked = questions()
    total: list[Flip] = []
    with tempfile.TemporaryDirectory() as name:
        mean = Path(name)
        _write_mean(mean)
        for folder in (SHAPES / "v1.0.0", SHAPES / "v1.1.0", mean):
            exact, rough = (ask(load_source(folder, precision), asked) for precision in ("float32", "bfloat16"))
            flips = find_flips(exact, rough)
            total += flips
            margins = sorted(_margin(scores) for scores in exact)
            gap = max(abs(a[label] - b[label]) for a, b in zip(exact, rough, strict=True) for label in a)
            close = [sum(margin <= end for margin in margins) for end in MARGINS]
            shown = ", ".join(f"{flip.margin:.3f}" for flip in sorted(flips, key=lambda flip: flip.margin))
            print(f"{folder.name if folder != mean else 'mean':8} {len(asked)} items, {len(flips)} flips", end="; ")
            print(f"margins of the flips: {shown or 'none'}; max |Δp| {gap:.3f};", end=" ")
            print("items with a margin up to", ", ".join(f"{end}: {n}" for end, n in zip(MARGINS, close, strict=True)))
    worst = max((flip.margin for flip in total), default=0.0)
    print(f"{3 * len(asked)} items: {len(total)} flips, the widest margin of a flip is {worst:.3f}")
    return 0


def questions() -> list[Question]:
    """Pictures of the golden set, each with statements of many others."""
    golden = list(golden_questions())
    pictures = list(dict.fromkeys(one.picture for one in golden))
    statements = list(dict.fromkeys(one.statement for one in golden))
    each = -(-ITEMS // len(pictures))
    turns = itertools.cycle(statements)
    return [Question(picture, next(turns), "") for picture in pictures for _ in range(each)][:ITEMS]


def find_flips(exact: Sequence[Scores], rough: Sequence[Scores]) -> list[Flip]:
    """The questions with another best answer."""
    return [
        Flip(_margin(one), max(abs(one[label] - other[label]) for label in one))
        for one, other in zip(exact, rough, strict=True)
        if max(one, key=one.__getitem__) != max(other, key=other.__getitem__)
    ]


def _margin(scores: Scores) -> float:
    best, second, *_ = sorted(scores.values(), reverse=True)
    return best - second


def _write_mean(folder: Path) -> None:
    shutil.copytree(SHAPES / "v1.0.0", folder, dirs_exist_ok=True)
    one, other = (torch.load(SHAPES / version / "pytorch_model.bin") for version in ("v1.0.0", "v1.1.0"))
    mean = {
        name: (tensor.float() + other[name].float()).div(2).half() if tensor.is_floating_point() else tensor
        for name, tensor in one.items()
    }
    (folder / "pytorch_model.bin").unlink()
    torch.save(mean, folder / "pytorch_model.bin")


if __name__ == "__main__":
    sys.exit(main())
