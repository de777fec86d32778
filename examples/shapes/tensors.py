"""Items as tensors, for training.

Pictures are kept as bytes at the model's resolution and statements as padded ids. Runs of items are made by several
processes; what comes out does not depend on how many.
"""

from __future__ import annotations

import functools
import multiprocessing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.shapes.dataset import KINDS, Item, Part, items
from examples.shapes.logic import Answer
from examples.shapes.scene import Colour, Scene, Shape, Size
from examples.shapes.vocabulary import PAD, encode

ANSWERS = tuple(Answer)
INPUT_PIXELS = 64
PATCHES_ACROSS = 4
LONGEST_PROMPT = 24
_SHAPES, _COLOURS, _SIZES = tuple(Shape), tuple(Colour), tuple(Size)
# Per patch: size x shape, colour x shape, size x colour x shape, quarter of the patch x shape, quarter x colour,
# box, row, column.
_GROUPS = (8, 20, 40, 16, 20, 1, PATCHES_ACROSS, PATCHES_ACROSS)
TARGETS = sum(_GROUPS)
_STARTS = tuple(sum(_GROUPS[:number]) for number in range(len(_GROUPS)))
_COLOURED = [number for group in (1, 2, 4) for number in range(_STARTS[group], _STARTS[group] + _GROUPS[group])]


@dataclass(frozen=True, slots=True)
class Examples:
    """Pictures and statements; several statements may share a picture."""

    pictures: Tensor  # (pictures, 3, 64, 64) uint8
    seen: Tensor  # (pictures, patches, TARGETS) uint8, what each patch shows
    is_grey: Tensor  # (pictures,) bool
    prompts: Tensor  # (statements, LONGEST_PROMPT) int64, padded
    answers: Tensor  # (statements,) int64, index into ANSWERS
    kinds: Tensor  # (statements,) int64, index into KINDS
    about_seen: Tensor  # (statements,) bool
    picture_of: Tensor  # (statements,) int64, index into pictures


def make_examples(part: Part, pictures: int, per_kind: int, run_pictures: int = 500, processes: int = 2) -> Examples:
    """Make that many pictures of a part, rounded up to whole runs of `run_pictures`."""
    runs = -(-pictures // run_pictures)
    work = functools.partial(_make_run, part, per_kind, run_pictures)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        made = pool.map(work, range(runs), chunksize=1)
    columns = [np.concatenate(column) for column in zip(*made, strict=True)]
    counts = np.cumsum([0] + [len(run[0]) for run in made[:-1]])
    columns[-1] = np.concatenate([run[-1] + start for run, start in zip(made, counts, strict=True)])
    return Examples(*(torch.from_numpy(column) for column in columns))


def _make_run(part: Part, per_kind: int, pictures: int, number: int) -> tuple[NDArray[np.generic], ...]:
    made = list(items(part, number, pictures, per_kind))
    said = [(index, statement) for index, item in enumerate(made) for statement in item.statements]
    prompts = np.full((len(said), LONGEST_PROMPT), PAD, dtype=np.int64)
    for row, (_, statement) in zip(prompts, said, strict=True):
        ids = encode(statement.text)
        row[: len(ids)] = ids
    return (
        np.stack([_input_picture(item) for item in made]),
        np.stack([_what_patches_show(item.scene) for item in made]),
        np.array([item.scene.is_grey for item in made]),
        prompts,
        np.array([ANSWERS.index(statement.answer) for _, statement in said]),
        np.array([KINDS.index(statement.kind) for _, statement in said]),
        np.array([statement.about_seen for _, statement in said]),
        np.array([index for index, _ in said]),
    )


def _input_picture(item: Item) -> NDArray[np.uint8]:
    """(3, 64, 64) uint8, resized as the engine does it."""
    picture = item.picture().resize((INPUT_PIXELS, INPUT_PIXELS), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _what_patches_show(scene: Scene) -> NDArray[np.uint8]:
    """(patches, TARGETS) uint8: what has its centre in each patch, whether a box covers it, and where it lies."""
    shown = np.zeros((PATCHES_ACROSS, PATCHES_ACROSS, TARGETS), dtype=np.uint8)
    for thing in scene.things:
        across, down = thing.x * PATCHES_ACROSS, thing.y * PATCHES_ACROSS
        quarter = int(down % 1 * 2) * 2 + int(across % 1 * 2)
        shape, colour, size = (
            _SHAPES.index(thing.shape),
            _COLOURS.index(thing.colour),
            _SIZES.index(thing.size),
        )
        numbers = (
            size * 4 + shape,
            colour * 4 + shape,
            (size * 5 + colour) * 4 + shape,
            quarter * 4 + shape,
            quarter * 5 + colour,
        )
        for start, number in zip(_STARTS, numbers, strict=False):
            shown[int(down), int(across), start + number] = 1
    for row in range(PATCHES_ACROSS):
        shown[row, :, _STARTS[6] + row] = 1
        shown[:, row, _STARTS[7] + row] = 1
    if scene.box is not None:
        middles = (np.arange(PATCHES_ACROSS) + 0.5) / PATCHES_ACROSS
        covers_column = (middles > scene.box.left) & (middles < scene.box.right)
        covers_row = (middles > scene.box.top) & (middles < scene.box.bottom)
        shown[:, :, _STARTS[5]] = np.outer(covers_row, covers_column)
    return shown.reshape(-1, TARGETS)


def target_weights(is_grey: Tensor) -> Tensor:
    """(pictures, 1, TARGETS) float32: 0 for the colours of grey pictures, 1 elsewhere."""
    weights = torch.ones(len(is_grey), 1, TARGETS)
    coloured = torch.tensor(_COLOURED)
    weights[:, 0, coloured] = (~is_grey).float()[:, None]
    return weights
