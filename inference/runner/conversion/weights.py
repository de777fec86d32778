"""Foreign weights, opened without running code and without copying: pickles of tensors and safetensors."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.durable import read_bounded
from common.engine_files import MAX_CONFIG_BYTES, OFA, FilesMissing, shards_of
from common.source import ConversionRefused

_FLOATS = {torch.float32, torch.float16, torch.bfloat16}


class Weights:
    """The tensors of a published model by name; they stay mapped to their files."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors as they lie in the files."""
        self._tensors = tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors

    def get(self, name: str) -> Tensor:
        """A parameter as float32.

        Raises:
            ConversionRefused: it is of another kind, or not finite.
        """
        tensor = self._tensors[name]
        if tensor.dtype not in _FLOATS:
            message = f"tensor {name} is {tensor.dtype}, supported: float32, float16, bfloat16"
            raise ConversionRefused("WEIGHTS_BROKEN", message)
        result = tensor.to(torch.float32)
        if not is_finite(result):
            raise ConversionRefused("WEIGHTS_BROKEN", f"tensor {name} holds NaN or infinity, supported: finite numbers")
        return result

    def index(self, name: str) -> Tensor:
        """A table of row numbers as int64.

        Raises:
            ConversionRefused: it holds no integers.
        """
        tensor = self._tensors[name]
        if tensor.is_floating_point() or tensor.is_complex():
            raise ConversionRefused("WEIGHTS_BROKEN", f"tensor {name} is {tensor.dtype}, supported: int64")
        return tensor.to(torch.int64)

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; at once if they are the same memory."""
        first, second = self._tensors[one], self._tensors[other]
        if first.shape == second.shape and first.dtype == second.dtype and first.data_ptr() == second.data_ptr():
            return True
        return torch.equal(first, second)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one pass, no copy."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def open_weights(folder: Path) -> Weights:
    """Open the first of the declared alternatives that is there.

    Raises:
        ConversionRefused: a file is damaged, holds something else than named tensors, or would run code.
        OSError: a file cannot be read.
    """
    name = next((name for name in OFA.weights if (folder / name).is_file()), None)
    if name is None:
        raise ConversionRefused("FILES_MISSING", f"the revision lacks {' or '.join(OFA.weights)}")
    tensors: dict[str, Tensor] = {}
    for file in _files_of(folder, name):
        for key, tensor in open_file(folder / file).items():
            if key in tensors:
                raise ConversionRefused("WEIGHTS_BROKEN", f"tensor {key} stands in two files")
            tensors[key] = tensor
    return Weights(tensors)


def _files_of(folder: Path, name: str) -> list[str]:
    """The file itself, or the shards that an index lists."""
    if not name.endswith(".index.json"):
        return [name]
    try:
        names = shards_of(json.loads(read_bounded(folder / name, MAX_CONFIG_BYTES)))
    except (ValueError, AttributeError, RecursionError) as error:
        kind = "FILES_MISSING" if isinstance(error, FilesMissing) else "CONFIG_BROKEN"
        raise ConversionRefused(kind, f"{name} is no weights index") from error
    for shard in names:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ConversionRefused("FILES_MISSING", f"{name} names {shard[:80]!r}, which is no file of the revision")
    return names


def open_file(path: Path) -> dict[str, Tensor]:
    """Map one file of tensors.

    Raises:
        ConversionRefused: it is damaged, holds something else, or would run code.
        OSError: it cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Only zip archives can be mapped; older pickles are read.
        with warnings.catch_warnings(action="ignore"):  # an odd pickle is refused or read, not worried about
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        if "allocate memory" in str(error):
            raise  # a limit was met, the file may be good
        message = f"{path.name} is damaged or holds more than tensors, supported: a plain state dict"
        raise ConversionRefused("WEIGHTS_BROKEN", message) from error
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        message = f"{path.name} holds something else than named tensors, supported: a plain state dict"
        raise ConversionRefused("WEIGHTS_BROKEN", message)
    return {str(name): tensor for name, tensor in found.items()}
