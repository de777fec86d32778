"""Reads a published model's tensors and writes a bundle's, one at a time, so that no model is in memory as a whole."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from common.bundle import BundleFile
from inference.runner.conversion.tensor_content import NOT_FINITE, OVERFLOWN, describe_bad_tensor
from inference.runner.conversion.tensor_location import TensorLocation, TensorLocations, refuse, shorten

_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}


class TensorReader:
    """Reads tensors of a published model by name. A context manager that closes the files."""

    def __init__(self, locations: TensorLocations, on_read: Callable[[str], None] = lambda _name: None) -> None:
        """Read from checked locations; `on_read` is called with the name of each parameter that `get` read."""
        self._locations = locations
        self._on_read = on_read
        self._files: dict[Path, FileIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._stack.close()

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this name."""
        return name in self._locations

    def get(self, name: str) -> Tensor:
        """Read a parameter as float32.

        Raises:
            ConversionRefused: an element is NaN or infinite, or the file is truncated.
            OSError: the file cannot be read.
        """
        result = self._load(name).to(torch.float32)
        if not is_finite(result):
            location = self._locations[name]
            is_overflown = location.dtype == "float16" and not bool(torch.isnan(result).any())
            refuse(describe_bad_tensor(location.path.name, name, OVERFLOWN if is_overflown else NOT_FINITE))
        self._on_read(name)
        return result

    def get_rows(self, name: str, numbers: Sequence[int]) -> Tensor:
        """Read some rows of a matrix as float32, without reading or checking the others.

        Raises:
            ConversionRefused: the file is truncated.
            OSError: the file cannot be read.
        """
        location = self._locations[name]
        if location.order[0] != 0:  # rows are not contiguous
            return self.get(name)[list(numbers)]
        size = location.size // location.shape[0]
        rows = [
            self._read_at(replace(location, start=location.start + number * size, shape=(1, *location.shape[1:])), name)
            for number in numbers
        ]
        return torch.cat(rows).to(torch.float32)

    def get_index(self, name: str) -> Tensor:
        """Read an index table as int64."""
        return self._load(name).to(torch.int64)

    def _load(self, name: str) -> Tensor:
        return self._read_at(self._locations[name], name)

    def _read_at(self, location: TensorLocation, name: str) -> Tensor:
        raw = torch.empty(location.size, dtype=torch.uint8)
        self._fill(location, raw.numpy().data, name)
        stored = raw.view(_DTYPES[location.dtype]).view([location.shape[number] for number in location.order])
        inverse = sorted(range(len(location.order)), key=location.order.__getitem__)
        return stored.permute(inverse)

    def _fill(self, location: TensorLocation, memory: memoryview, name: str) -> None:
        if location.path not in self._files:
            self._files[location.path] = self._stack.enter_context(FileIO(location.path))
        file = self._files[location.path]
        os.posix_fadvise(
            file.fileno(), location.start, location.size, os.POSIX_FADV_WILLNEED
        )  # reads ahead in large pieces
        file.seek(location.start)
        done = 0
        while done < len(memory):
            count = file.readinto(memory[done:])
            if not count:
                refuse(f"{location.path.name} is damaged: tensor {shorten(name)} ends after the end of the file")
            done += count
        # Not read again; frees page cache for the files that are written.
        os.posix_fadvise(file.fileno(), location.start, location.size, os.POSIX_FADV_DONTNEED)


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; one pass without a copy."""
    return math.prod(tensor.shape) == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}
_ALIGNMENT = 64  # bytes; alignment of mapped tensors for vector instructions


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to write to the bundle."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[[], Tensor]  # returns that shape and dtype, on the CPU

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_safetensors(
    path: Path, targets: Sequence[OutputTensor], progress: Callable[[float], None] = lambda _share: None
) -> BundleFile:
    """Compute and write tensors in order and sync the file; `progress` receives the share done, 0..1.

    Returns:
        The file with the digest of the bytes written, against which the file on disk can be verified.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: a computed tensor has another shape or dtype than its target.
    """
    header = _header(targets)
    done, total = 0, sum(target.size for target in targets)
    hashed = hashlib.sha256()
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        hashed.update(len(header).to_bytes(8, "little"))
        hashed.update(header)
        for target in targets:
            tensor = target.compute().contiguous()
            if tuple(tensor.shape) != target.shape or tensor.dtype != target.dtype:
                raise RuntimeError(f"{target.name} was computed as {tuple(tensor.shape)} {tensor.dtype}")
            content = tensor.reshape(-1).view(torch.uint8).numpy().data
            file.write(content)
            hashed.update(content)
            done += target.size
            progress(done / total)
        file.flush()
        os.fsync(file.fileno())
        return BundleFile(path.name, file.tell(), hashed.hexdigest())


def _header(targets: Sequence[OutputTensor]) -> bytes:
    """Return the header: JSON of names, dtypes, shapes and offsets, padded with spaces so that the data is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for target in targets:
        end = start + target.size
        entries[target.name] = {
            "dtype": _DTYPE_NAMES[target.dtype],
            "shape": target.shape,
            "data_offsets": (start, end),
        }
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-(len(header) + 8) % _ALIGNMENT)
