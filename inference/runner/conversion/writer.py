"""Write safetensors one tensor at a time, so that a model is never whole in memory."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.bundle import BundleFile

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}
_ALIGNMENT = 64  # bytes; mapped tensors then begin where vector instructions like it


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the sealed layout."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]  # of that shape and dtype, on the CPU

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_safetensors(
    path: Path, targets: Sequence[Target], progress: Callable[[float], None] = lambda _share: None
) -> BundleFile:
    """Make and write tensors in order, and wait until the disk has them; `progress` hears of the share that is done.

    Returns:
        The file, hashed as it was meant: what the disk made of it can be held against that.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: a tensor is not of the shape or dtype that was promised.
    """
    header = _header(targets)
    done, whole = 0, sum(target.size for target in targets)
    hashed = hashlib.sha256()
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        hashed.update(len(header).to_bytes(8, "little"))
        hashed.update(header)
        for target in targets:
            tensor = target.make().contiguous()
            if tuple(tensor.shape) != target.shape or tensor.dtype != target.dtype:
                raise RuntimeError(f"{target.name} became {tuple(tensor.shape)} {tensor.dtype}")
            content = tensor.reshape(-1).view(torch.uint8).numpy().data
            file.write(content)
            hashed.update(content)
            done += target.size
            progress(done / whole)
        file.flush()
        os.fsync(file.fileno())
        return BundleFile(path.name, file.tell(), hashed.hexdigest())


def _header(targets: Sequence[Target]) -> bytes:
    """The JSON of names, types and places, padded with spaces so that the data is aligned."""
    row: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for target in targets:
        end = start + target.size
        row[target.name] = {"dtype": _NAMES[target.dtype], "shape": target.shape, "data_offsets": (start, end)}
        start = end
    header = json.dumps(row, separators=(",", ":")).encode()
    return header + b" " * (-(len(header) + 8) % _ALIGNMENT)
