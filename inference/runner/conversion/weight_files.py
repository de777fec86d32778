"""Locates the tensors of a published folder in whichever of the declared weight files it has."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.durable import read_bounded
from common.engine_files import MAX_CONFIG_BYTES, WEIGHTS, FilesMissing, list_shards
from common.source import ConversionRefused
from inference.runner.conversion.pickle_file import locate_in_torch_file
from inference.runner.conversion.tensor_location import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    TensorLocation,
    refuse,
    shorten,
)

INDEX_SUFFIX = ".index.json"
_LENGTH_BYTES = 8  # little-endian length of the header, at the start of a safetensors file
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def locate_tensors(folder: Path) -> dict[str, TensorLocation]:
    """Locate the tensors of a folder, in the first of the declared weight files that exists.

    Raises:
        ConversionRefused: a file is damaged, breaks a rule of `tensor_location`, or is missing.
        OSError: a file cannot be read.
    """
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise ConversionRefused("FILES_MISSING", f"the revision lacks {' or '.join(WEIGHTS)}")
    if name.endswith(INDEX_SUFFIX):
        return _locate_in_shards(folder, name)
    return locate_in_file(folder / name)


def locate_in_file(path: Path) -> dict[str, TensorLocation]:
    """Locate the tensors of one file, whose suffix decides its format.

    Raises:
        ConversionRefused: the file is damaged or breaks a rule of `tensor_location`.
        OSError: the file cannot be read.
    """
    return _LOCATORS[path.suffix](path)


def locate_in_safetensors(path: Path) -> dict[str, TensorLocation]:
    """Locate the tensors of a safetensors file.

    The safetensors library validates the header: valid JSON, dtypes, sizes, and tensors that fill the file without gaps
    or overlaps. Checked here are the header's length (which bounds the library's memory), the number of tensors,
    duplicate names and the supported dtypes.

    Raises:
        ConversionRefused: the header is invalid, too large, or has an unsupported dtype.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:  # rule 2
            refuse(f"{path.name} has a header of {length} bytes, supported: {MAX_HEADER_BYTES}")
        try:
            with safe_open(path, "numpy"):  # without torch, which a broken file must not cause to be imported
                pass
        except SafetensorError as error:
            refuse(f"{path.name} is damaged or not a safetensors file: {shorten(str(error))}")
        header = json.loads(os.pread(file.fileno(), length, _LENGTH_BYTES), object_pairs_hook=_refuse_duplicates)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:  # rule 2
        refuse(f"{path.name} names {len(header)} tensors, supported: {MAX_TENSORS}")
    return {name: _location(path, _LENGTH_BYTES + length, name, entry) for name, entry in header.items()}


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        refuse("a safetensors header names something twice")
    return entries


def _location(path: Path, data_start: int, name: str, entry: dict[str, Any]) -> TensorLocation:
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype not in _DTYPES:
        refuse(f"{path.name}: tensor {shorten(name)} is of type {dtype}, supported: {', '.join(_DTYPES)}")
    return TensorLocation(path, data_start + entry["data_offsets"][0], _DTYPES[dtype], shape, tuple(range(len(shape))))


_LOCATORS: dict[str, Callable[[Path], dict[str, TensorLocation]]] = {
    ".safetensors": locate_in_safetensors,
    ".bin": locate_in_torch_file,
}


def _locate_in_shards(folder: Path, index: str) -> dict[str, TensorLocation]:
    """Locate the tensors of all shards of an index (rule 5)."""
    suffix = Path(index.removesuffix(INDEX_SUFFIX)).suffix
    weight_map = _read_weight_map(folder, index)
    locations: dict[str, TensorLocation] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            message = f"{index} names {shorten(shard)!r}, which is not a file of the revision"
            raise ConversionRefused("FILES_MISSING", message)
        if Path(shard).suffix != suffix:
            refuse(f"{index} names {shorten(shard)!r}, supported: names that end in {suffix}")
        for name, location in locate_in_file(folder / shard).items():
            if name in locations:
                refuse(f"tensor {shorten(name)} is in two files")
            if weight_map.get(name) != shard:
                refuse(f"tensor {shorten(name)} is in {shorten(shard)}, but {index} does not list it there")
            locations[name] = location
    missing = sorted(set(weight_map) - set(locations))
    if missing:
        refuse(f"tensor {shorten(missing[0])} is listed by {index} but is in no shard")
    return locations


def _read_weight_map(folder: Path, index: str) -> dict[str, str]:
    """File name of each tensor, by its name."""
    try:
        content = json.loads(read_bounded(folder / index, MAX_CONFIG_BYTES))
        list_shards(content)
    except (ValueError, AttributeError, RecursionError) as error:
        kind = "FILES_MISSING" if isinstance(error, FilesMissing) else "CONFIG_BROKEN"
        raise ConversionRefused(kind, f"{index} is not a valid weights index") from error
    weight_map: dict[str, str] = content["weight_map"]
    return weight_map
