"""Make the demo models from nothing: `python -m examples.shapes.train FOLDER` in the parity environment.

Writes `FOLDER/early`, which has learnt enough to be useful, and `FOLDER/final`, the same model trained further; model
cards come from `examples.shapes.evaluate`. About an hour on two cores. `FOLDER/eyes.pt` keeps the first lesson; it and
`FOLDER/early` are used again if they are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from examples.shapes.dataset import Part
from examples.shapes.directory import write_directory
from examples.shapes.eyes import look, train_eyes
from examples.shapes.layout import WEIGHTS
from examples.shapes.model import OFAModel, build, load_eyes
from examples.shapes.reading import FIRST_LESSONS, FURTHER_LESSONS, Class, teach
from examples.shapes.tensors import Examples, make_examples

SEED = 1
PICTURES = 72_000
DEVELOPMENT_PICTURES = 500
STATEMENTS_PER_KIND = 2  # for each picture
PASSES_OF_THE_EYES = 1.0


def main() -> None:
    """Train both models."""
    parser = argparse.ArgumentParser(description="Train the demo models.")
    parser.add_argument("folder", type=Path, help="where the results go")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)

    training = make_examples(Part.TRAINING, PICTURES, STATEMENTS_PER_KIND)
    development = make_examples(Part.DEVELOPMENT, DEVELOPMENT_PICTURES, STATEMENTS_PER_KIND)
    print(f"{len(training.pictures)} pictures, {len(training.prompts)} statements", flush=True)
    model = build(SEED)
    _open_eyes(model, training, folder / "eyes.pt")
    _read(model, training, development, folder)


def _open_eyes(model: OFAModel, training: Examples, kept: Path) -> None:
    if kept.exists():
        load_eyes(model, torch.load(kept, weights_only=True))
        return
    train_eyes(model, training, PASSES_OF_THE_EYES, SEED)
    torch.save(model.encoder.embed_images.state_dict(), kept)


def _read(model: OFAModel, training: Examples, development: Examples, folder: Path) -> None:
    model.encoder.embed_images.eval().requires_grad_(requires_grad=False)
    taught = Class(look(model, training.pictures), training)
    asked = Class(look(model, development.pictures), development)
    early = folder / "early"
    if not early.exists():
        teach(model, taught, asked, FIRST_LESSONS, SEED)
        write_directory(model, early)
    # The further model starts from the early one as it was stored, in half precision.
    model.load_state_dict(torch.load(early / WEIGHTS, weights_only=True), strict=False)
    teach(model, taught, asked, FURTHER_LESSONS, SEED + 1)
    write_directory(model, folder / "final")


if __name__ == "__main__":
    main()
