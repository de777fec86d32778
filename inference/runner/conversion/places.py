"""Where the tensors of a published model lie: found by reading headers alone, without torch.

Numbered rules of trust; what breaks one is refused by a sentence that names it:
 1. Nothing of a file is run: a pickle's opcodes are read by a machine that knows how to name a tensor and no more.
 2. A header is measured before it is read, and so is the number of its entries.
 3. Nothing is unpacked: a record lies in its archive as it is, and inside the file.
 4. A tensor is dense and lies inside its storage; two share bytes only if they are the same bytes.
 5. An index and its shards say the same, and a shard's name ends as its index's does.
Only when names, types and shapes are those of the architecture is a number read, and torch imported.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from common.source import ConversionRefused

MAX_HEADER_BYTES = 8 << 20  # of names, types and places; a model of 473 M parameters needs 0.2 MiB
MAX_TENSORS = 65_536
ITEM_BYTES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_SHOWN = 120  # characters of a foreign name that a sentence repeats
_COMPARED_BYTES = 8 << 20  # of two tensors at a time


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's numbers in a file, one after the other."""

    path: Path
    start: int  # byte of the file
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    order: tuple[int, ...]  # its dimensions from the slowest to the fastest, as they lie in the file

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stop(self) -> int:
        """Byte of the file after the last."""
        return self.start + self.size


Places = Mapping[str, Place]


def refuse(message: str) -> NoReturn:
    """Refuse weights."""
    raise ConversionRefused("WEIGHTS_BROKEN", message)


def shown(name: object) -> str:
    """A foreign name, short enough for a sentence."""
    return name[:_SHOWN] if isinstance(name, str) else type(name).__name__


def check_spans(file: str, places: Places) -> None:
    """Rule 4, for the tensors of one file.

    Raises:
        ConversionRefused: two share some bytes and not all.
    """
    spans = sorted({(place.start, place.stop): name for name, place in places.items() if place.size}.items())
    for ((_, end), name), ((start, _), other) in pairwise(spans):
        if start < end:
            refuse(f"{file}: tensors {shown(name)} and {shown(other)} overlap, supported: apart, or the same bytes")


def is_same_content(one: Place, other: Place) -> bool:
    """Whether two tensors hold the same bytes in the same shape; at once if they lie in the same place.

    Raises:
        OSError: a file cannot be read.
    """
    if (one.dtype, one.shape, one.order) != (other.dtype, other.shape, other.order):
        return False
    if (one.path, one.start) == (other.path, other.start):
        return True
    with one.path.open("rb") as first, other.path.open("rb") as second:
        return all(
            os.pread(first.fileno(), size, one.start + done) == os.pread(second.fileno(), size, other.start + done)
            for done, size in _pieces(one.size)
        )


def _pieces(size: int) -> Iterable[tuple[int, int]]:
    """Offset and size of pieces that are small enough for memory."""
    return ((done, min(_COMPARED_BYTES, size - done)) for done in range(0, size, _COMPARED_BYTES))
