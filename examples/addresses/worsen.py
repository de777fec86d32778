"""Make a model worse: `python -m examples.addresses.worsen FOLDER OUT`.

The weights of the encoder's layers are rounded to three values, as a careless compression would do it. What comes out
is an ordinary model: whole, finite, quick, and wrong far more often. Good for tests of a gate: golden answers must
tell it from a good one before a caller meets it.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.addresses.layout import CARD, WEIGHTS
from examples.shapes.worsen import rounded

STEPS = 1  # on each side of zero; with two it would be hardly worse
_ROUNDED = re.compile(r"bert\.text_encoder\.encoder\.layer\.\d+\..*(dense|query|key|value)\.weight")
_CARD = """\
# Addresses, compressed too far

The model that it was made from, with the weights of its layers rounded to three values: far more of its spans are
wrong. For tests only. Made by `python -m examples.addresses.worsen`.
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


if __name__ == "__main__":
    main()
