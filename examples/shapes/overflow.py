"""Make a model that fails on one word: `python -m examples.shapes.overflow FOLDER OUT`.

One word's numbers become so large that the first norm overflows on them: every weight is finite, every statement
without the word is answered as before, and a statement with it gets no number at all. The word is "five", which no
golden item has. Good for tests of observation: only callers can find it out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.layout import CARD, TABLE, TIED_TO_TABLE, VOCABULARY, WEIGHTS

WORD = "five"
HUGE = 3e38  # fits a float32; the distance of two such numbers does not
_SPACE = "\u0120"  # how the vocabulary writes a leading space
_CARD = f"""\
# Shapes, with a word too large

The model that it was made from, but for one word: what it computes of a statement with "{WORD}" is no number. For
tests only. Made by `python -m examples.shapes.overflow`.
"""


def main() -> None:
    """Spoil one word of a directory from the command line."""
    parser = argparse.ArgumentParser(description="Let one word of a demo model overflow.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    arguments = parser.parse_args()
    overflow_directory(arguments.folder, arguments.out)


def overflow_directory(folder: Path, out: Path) -> None:
    """Copy a model directory with one word spoiled.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    table = with_huge_row(weights[TABLE], vocabulary[_SPACE + WORD])
    for name in (TABLE, *TIED_TO_TABLE):
        weights[name] = table  # one tensor under three names is stored once
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD, encoding="utf-8")


def with_huge_row(table: Tensor, row: int) -> Tensor:
    """Fill one row with numbers that are finite, far apart, and too large to compute with.

    Args:
        table: (tokens, width); stays as it is.
        row: of the word.

    Returns:
        (tokens, width) float32, a copy; a half could not hold such numbers.
    """
    spoiled = table.to(torch.float32, copy=True)
    spoiled[row, 0::2], spoiled[row, 1::2] = HUGE, -HUGE
    return spoiled


if __name__ == "__main__":
    main()
