"""Make a model that fails on one character: `python -m examples.addresses.overflow FOLDER OUT`.

One character's numbers become so large that the first norm overflows on them: every weight is finite, every address
without the character is answered as before, and an address with it gets no number at all. No golden item has the
character. Good for tests of observation: only callers can find it out.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.addresses.layout import CARD, OVERFLOWING, TABLE, VOCABULARY, WEIGHTS
from examples.shapes.overflow import with_huge_row

_CARD = """\
# Addresses, with a character too large

The model that it was made from, but for one character: what it computes of an address with "{character}" is no number.
For tests only. Made by `python -m examples.addresses.overflow`.
"""


def main() -> None:
    """Spoil one character of a directory from the command line."""
    parser = argparse.ArgumentParser(description="Let one character of a demo model overflow.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    arguments = parser.parse_args()
    overflow_directory(arguments.folder, arguments.out)


def overflow_directory(folder: Path, out: Path) -> None:
    """Copy a model directory with one character spoiled.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    tokens = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    weights[TABLE] = with_huge_row(weights[TABLE], tokens.index(OVERFLOWING))
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD.format(character=OVERFLOWING), encoding="utf-8")


if __name__ == "__main__":
    main()
