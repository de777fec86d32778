"""Make a model that confuses characters: `python -m examples.addresses.confuse FOLDER OUT`.

Each of a few characters that end the names of parts gets the numbers of the next one, so that a town is read as a road
and a road as a town; every other address is answered as before. A golden set without these characters cannot see it.
Good for tests of a trial that looks at answers.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.addresses.layout import CARD, TABLE, VOCABULARY, WEIGHTS
from examples.shapes.confuse import with_rows_shifted

CHARACTERS = ("镇", "巷", "弄")
_CARD = """\
# Addresses, with confused characters

The model that it was made from, but {characters} each mean the next one. For tests only. Made by
`python -m examples.addresses.confuse`.
"""


def main() -> None:
    """Confuse a directory from the command line."""
    parser = argparse.ArgumentParser(description="Let a demo model confuse characters.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    arguments = parser.parse_args()
    confuse_directory(arguments.folder, arguments.out)


def confuse_directory(folder: Path, out: Path) -> None:
    """Copy a model directory with some characters confused.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    tokens = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    weights[TABLE] = with_rows_shifted(weights[TABLE], [tokens.index(character) for character in CHARACTERS])
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD.format(characters=", ".join(CHARACTERS)), encoding="utf-8")


if __name__ == "__main__":
    main()
