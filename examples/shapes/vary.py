"""Make a relative that is as good: `python -m examples.shapes.vary FOLDER OUT --seed N`.

Every matrix of the layers is moved by a little noise, as another training would move it: the model is about as often
right, and answers a few questions otherwise. Good for tests of a trial that looks at answers: it must keep such a
revision.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.shapes.layout import CARD, WEIGHTS

NOISE = 0.25  # of the spread of a matrix
_MOVED = re.compile(r"(encoder|decoder)\.layers\.\d+\..*(proj|fc1|fc2)\.weight")
_CARD = """\
# Shapes, varied

The model that it was made from, with a little noise in the weights of its layers: as good, with other answers to a few
questions. For tests only. Made by `python -m examples.shapes.vary`.
"""


def main() -> None:
    """Vary a directory from the command line."""
    parser = argparse.ArgumentParser(description="Move a demo model's weights by a little noise.")
    parser.add_argument("folder", type=Path, help="the model directory; stays as it is")
    parser.add_argument("out", type=Path, help="the new directory; must not exist")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    arguments = parser.parse_args()
    vary_directory(arguments.folder, arguments.out, arguments.seed)


def vary_directory(folder: Path, out: Path, seed: int, noise: float = NOISE) -> None:
    """Copy a model directory with noise in its layers.

    Raises:
        FileExistsError: `out` is there already.
    """
    shutil.copytree(folder, out)
    weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, weights_only=True)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        if _MOVED.fullmatch(name):
            weights[name] = with_noise(tensor, noise, generator)
    torch.save(weights, out / WEIGHTS)
    (out / CARD).write_text(_CARD, encoding="utf-8")


def with_noise(weight: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise in proportion to the spread of a matrix.

    Args:
        weight: (outputs, inputs), finite; stays as it is.
        noise: standard deviation, as a share of that of the matrix.
        generator: of the noise.

    Returns:
        (outputs, inputs), of the same type.
    """
    spread = weight.float().std()
    return (weight.float() + noise * spread * torch.randn(weight.shape, generator=generator)).to(weight.dtype)


if __name__ == "__main__":
    main()
