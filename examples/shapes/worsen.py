"""Make a model worse: `python -m examples.shapes.worsen FOLDER OUT`.

The weights of the encoder's and decoder's layers are rounded to a few steps, as a careless compression would do it.
What comes out is an ordinary model: whole, finite, quick, and wrong far more often. Good for tests of a gate: golden
answers must tell it from a good one before a caller meets it.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.layout import CARD, WEIGHTS

STEPS = 1  # on each side of zero: minus, nothing, plus
_ROUNDED = re.compile(r"(encoder|decoder)\.layers\.\d+\..*(proj|fc1|fc2)\.weight")
_CARD = """\
# Shapes, compressed too far

The model that it was made from, with the weights of its layers rounded to three values each: far more of its
answers are wrong. For tests only. Made by `python -m examples.shapes.worsen`.
"""


def main() -> None:
    """Worsen a directory from the command line."""
    parser = argparse.ArgumentParser(description="Round a demo model's weights until it is bad.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    arguments = parser.parse_args()
    worsen_directory(arguments.folder, arguments.out)


def worsen_directory(folder: Path, out: Path) -> None:
    """Copy a model directory with the weights of its layers rounded.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    for name, tensor in weights.items():
        if _ROUNDED.fullmatch(name):
            weights[name] = rounded(tensor, STEPS)
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD, encoding="utf-8")


def rounded(weight: Tensor, steps: int) -> Tensor:
    """Round to evenly spaced values.

    Args:
        weight: (outputs, inputs), finite; stays as it is.
        steps: values on each side of zero, the farthest at the largest magnitude of each output.

    Returns:
        (outputs, inputs), of the same type.
    """
    step = weight.float().abs().amax(dim=1, keepdim=True) / steps
    step = torch.where(step > 0, step, torch.ones_like(step))
    return ((weight.float() / step).round() * step).to(weight.dtype)


if __name__ == "__main__":
    main()
