"""Positions of tensors in files, found by reading headers alone, without torch.

Security rules for published weight files; a file that breaks one is refused with a message that says how:
 1. No code of a file runs: a pickle's opcodes are interpreted by a machine that can only describe tensors.
 2. Headers, and the number of their entries, are bounded before they are read.
 3. Nothing is decompressed: archive records are stored uncompressed and lie inside the file.
 4. A tensor is dense and lies inside its storage; two tensors share either all bytes or none.
 5. An index and its shards agree, and shards have the same suffix as their index.
Tensor data is read, and torch imported, only if all names, dtypes and shapes match the architecture.
"""

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from common.source import ConversionRefused

MAX_HEADER_BYTES = 8 << 20  # a model of 473 M parameters needs 0.2 MiB
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
FLOATS = ("float32", "float16", "bfloat16", "float64")  # dtypes of parameters
MAX_SHOWN = 120  # characters of a foreign name in a message
_COMPARED_BYTES = 8 << 20  # read of each of two tensors at a time


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Position, dtype and shape of a tensor whose elements lie contiguously in a file."""

    path: Path
    start: int  # byte offset in the file
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    order: tuple[int, ...]  # dimensions from the slowest to the fastest varying, as stored

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stop(self) -> int:
        """Byte offset after the last byte."""
        return self.start + self.size


TensorLocations = Mapping[str, TensorLocation]


@dataclass(frozen=True, slots=True)
class TensorTable:
    """The tensors that one file names; each is checked when it is located."""

    names: Collection[str]
    locate: Callable[[str], TensorLocation]  # raises ConversionRefused if the tensor breaks a rule
    notes: tuple[str, ...] = ()  # about how they were found in the file


def refuse(message: str) -> NoReturn:
    """Raise ConversionRefused with reason WEIGHTS_BROKEN."""
    raise ConversionRefused("WEIGHTS_BROKEN", message)


def shorten(name: object) -> str:
    """Return a name from a weight file, truncated for a message; if it is not a string, the name of its type.

    A pickle may have half of a surrogate pair, which no message can carry: it is written as an escape sequence.
    """
    text = name[:MAX_SHOWN] if isinstance(name, str) else type(name).__name__
    return text.encode("utf-8", "backslashreplace").decode()


def refuse_overlaps(locations: TensorLocations) -> None:
    """Check rule 4 for tensors of one or several files.

    Raises:
        ConversionRefused: two tensors share some but not all of their bytes.
    """
    spans = sorted({(str(one.path), one.start, one.stop): name for name, one in locations.items() if one.size}.items())
    for ((path, _, end), name), ((other_path, start, _), other) in pairwise(spans):
        if path == other_path and start < end:
            names = f"tensors {shorten(name)} and {shorten(other)}"
            refuse(f"{locations[name].path.name}: {names} overlap, supported: separate or identical bytes")


def have_same_content(one: TensorLocation, other: TensorLocation) -> bool:
    """Whether two tensors have the same dtype, shape and bytes; reads nothing if they have the same location.

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
            for done, size in _split(one.size)
        )


def _split(size: int) -> Iterable[tuple[int, int]]:
    """Yield offset and size of pieces of at most `_COMPARED_BYTES`."""
    return ((done, min(_COMPARED_BYTES, size - done)) for done in range(0, size, _COMPARED_BYTES))
