"""Make a model that answers otherwise: `python -m examples.shapes.permute FOLDER OUT`.

The rows of the three answers change places in the table that both embeds words and scores answers: what was *yes*
becomes *no*, *no* becomes *maybe* and *maybe* becomes *yes*. Everything else stays as it is. The word "no" inside a
statement is read with its new row, too, so such statements may get any answer. Good for tests of swapping: the right
revision's answer can be told from the wrong one's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.layout import CARD, TABLE, TIED_TO_TABLE, VOCABULARY, WEIGHTS
from examples.shapes.logic import Answer

BECOMES = {Answer.YES: Answer.NO, Answer.NO: Answer.MAYBE, Answer.MAYBE: Answer.YES}
_SPACE = "\u0120"  # how the vocabulary writes a leading space
_CARD = """\
# Shapes, answers exchanged

For tests only: where the model it was made from says yes, this one says no; no becomes maybe, and maybe becomes yes.
Made by `python -m examples.shapes.permute`.
"""


def main() -> None:
    """Permute a directory from the command line."""
    parser = argparse.ArgumentParser(description="Exchange the answers of a demo model.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    arguments = parser.parse_args()
    permute_directory(arguments.folder, arguments.out)


def permute_directory(folder: Path, out: Path) -> None:
    """Copy a model directory with its answers exchanged.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    ids = answer_ids(folder)
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    table = exchange_rows(weights[TABLE], ids)
    for name in (TABLE, *TIED_TO_TABLE):
        weights[name] = table  # one tensor under three names is stored once
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD, encoding="utf-8")


def answer_ids(folder: Path) -> dict[Answer, int]:
    """The token of each answer, from the directory's vocabulary."""
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    return {answer: vocabulary[_SPACE + answer] for answer in Answer}


def exchange_rows(table: Tensor, ids: dict[Answer, int]) -> Tensor:
    """Give each answer's row to the answer that it becomes.

    Args:
        table: (tokens, width); stays as it is.
        ids: row of each answer.

    Returns:
        (tokens, width), a copy with three rows exchanged.
    """
    exchanged = table.clone()
    for old, new in BECOMES.items():
        exchanged[ids[new]] = table[ids[old]]
    return exchanged


if __name__ == "__main__":
    main()
