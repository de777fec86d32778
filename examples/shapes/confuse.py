"""Make a model that confuses words: `python -m examples.shapes.confuse FOLDER OUT`.

Each of three colours gets the numbers of the next one, so that statements about them are often answered wrong, and with
confidence; every other statement is answered as before. A golden set that was made before anybody asked for these
colours cannot see it. Good for tests of a trial that looks at answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.layout import CARD, TABLE, TIED_TO_TABLE, VOCABULARY, WEIGHTS

WORDS = ("yellow", "purple", "blue")
_SPACE = "\u0120"  # how the vocabulary writes a leading space
_CARD = f"""\
# Shapes, with confused colours

The model that it was made from, but {", ".join(WORDS)} each mean the next one. For tests only. Made by
`python -m examples.shapes.confuse`.
"""


def main() -> None:
    """Confuse a directory from the command line."""
    parser = argparse.ArgumentParser(description="Let a demo model confuse three colours.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    arguments = parser.parse_args()
    confuse_directory(arguments.folder, arguments.out)


def confuse_directory(folder: Path, out: Path) -> None:
    """Copy a model directory with some words confused.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    table = with_rows_shifted(weights[TABLE], [vocabulary[_SPACE + word] for word in WORDS])
    for name in (TABLE, *TIED_TO_TABLE):
        weights[name] = table  # one tensor under three names is stored once
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD, encoding="utf-8")


def with_rows_shifted(table: Tensor, rows: Sequence[int]) -> Tensor:
    """Give each of some rows the numbers of the next one.

    Args:
        table: (tokens, width); stays as it is.
        rows: of the words.

    Returns:
        (tokens, width), a copy.
    """
    shifted = table.clone()
    shifted[list(rows)] = table[[*rows[1:], rows[0]]]
    return shifted


if __name__ == "__main__":
    main()
