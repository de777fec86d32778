"""The numbers of a published model, read one tensor at a time, so that they are never in memory together."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from inference.runner.conversion.places import Place, Places, refuse, shown

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}


class Weights:
    """The tensors of a model whose places were checked, by name. A context: leaving it closes the files."""

    def __init__(self, places: Places, read: Callable[[str], None] = lambda _name: None) -> None:
        """Take places; `read` hears of each tensor that is read."""
        self._places = places
        self._read = read
        self._files: dict[Path, FileIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin to read."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._stack.close()

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._places

    def get(self, name: str) -> Tensor:
        """A parameter as float32, in memory of its own.

        Raises:
            ConversionRefused: it is not finite, or the file ends in it.
            OSError: the file cannot be read.
        """
        result = self._load(name).to(torch.float32)
        if not is_finite(result):
            refuse(f"tensor {name} holds NaN or infinity, supported: finite numbers")
        self._read(name)
        return result

    def rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Some rows of a matrix as float32, each read by itself; whether the rest is finite stays open.

        Raises:
            ConversionRefused: the file ends in one.
            OSError: the file cannot be read.
        """
        place = self._places[name]
        if place.order[0] != 0:  # a row does not lie together
            return self.get(name)[list(numbers)]
        size = place.size // place.shape[0]
        found = [
            self._read_at(replace(place, start=place.start + number * size, shape=(1, *place.shape[1:])), name)
            for number in numbers
        ]
        return torch.cat(found).to(torch.float32)

    def index(self, name: str) -> Tensor:
        """A table of row numbers as int64."""
        return self._load(name).to(torch.int64)

    def _load(self, name: str) -> Tensor:
        return self._read_at(self._places[name], name)

    def _read_at(self, place: Place, name: str) -> Tensor:
        raw = torch.empty(place.size, dtype=torch.uint8)
        self._fill(place, raw.numpy().data, name)
        stored = raw.view(_DTYPES[place.dtype]).view([place.shape[number] for number in place.order])
        inverse = sorted(range(len(place.order)), key=place.order.__getitem__)
        return stored.permute(inverse)

    def _fill(self, place: Place, memory: memoryview, name: str) -> None:
        if place.path not in self._files:
            self._files[place.path] = self._stack.enter_context(FileIO(place.path))
        file = self._files[place.path]
        os.posix_fadvise(file.fileno(), place.start, place.size, os.POSIX_FADV_WILLNEED)  # in large pieces
        file.seek(place.start)
        done = 0
        while done < len(memory):
            count = file.readinto(memory[done:])
            if not count:
                refuse(f"{place.path.name} is damaged: tensor {shown(name)} ends behind the file")
            done += count
        # Nobody reads it again, and what is written next needs the memory.
        os.posix_fadvise(file.fileno(), place.start, place.size, os.POSIX_FADV_DONTNEED)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one pass, no copy."""
    return math.prod(tensor.shape) == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
