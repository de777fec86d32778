"""The header of a safetensors file: names, types and places of its tensors."""

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from common.source import ConversionRefused
from inference.runner.conversion.places import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Place,
    check_spans,
    refuse,
    shown,
)

_LENGTH_BYTES = 8  # little-endian, before the header
_MAX_DIMENSIONS = 8
_METADATA = "__metadata__"
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


def safetensors_places(path: Path) -> dict[str, Place]:
    """Find the tensors of a file.

    Raises:
        ConversionRefused: the header is damaged, too large, or its tensors do not fill the file one after the other.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if file_size < _LENGTH_BYTES or length > file_size - _LENGTH_BYTES:
            refuse(f"{path.name} is damaged or no safetensors: its header would end behind the file")
        if length > MAX_HEADER_BYTES:
            refuse(f"{path.name} has a header of {length} bytes, supported: {MAX_HEADER_BYTES}")  # rule 2
        rows = _rows(path.name, file.read(length))
    begin = _LENGTH_BYTES + length
    places = {name: _place(path, begin, name, row) for name, row in rows.items()}
    check_spans(path.name, places)
    _check_filled(path.name, begin, file_size, places)
    return places


def _rows(file: str, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            refuse(f"{file} names something twice in its header")
        return row

    try:
        rows = json.loads(header, object_pairs_hook=unique)
    except RecursionError:
        refuse(f"{file} has a header that is nested too deeply")
    except ConversionRefused:
        raise
    except ValueError:
        refuse(f"{file} is damaged or no safetensors: its header is no JSON")
    if not isinstance(rows, dict):
        refuse(f"{file} has a header that is no object")
    rows.pop(_METADATA, None)
    if len(rows) > MAX_TENSORS:
        refuse(f"{file} names {len(rows)} tensors, supported: {MAX_TENSORS}")  # rule 2
    return rows


def _place(path: Path, begin: int, name: str, row: object) -> Place:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        _refuse_row(path, name, "has other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        _refuse_row(path, name, f"is of type {shown(dtype)}, supported: {', '.join(_DTYPES)}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        _refuse_row(path, name, f"has a shape that is no list of up to {_MAX_DIMENSIONS} counts")
    if not _are_counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 - begin and end
        _refuse_row(path, name, "has offsets that are no two counts")
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[_DTYPES[dtype]]:
        _refuse_row(path, name, "has offsets that contradict its shape")
    return Place(path, begin + offsets[0], _DTYPES[dtype], tuple(shape), tuple(range(len(shape))))


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _check_filled(file: str, begin: int, file_size: int, places: dict[str, Place]) -> None:
    """The format's own rule: no gaps and nothing behind, so that no bytes hide in a file."""
    end = max((place.stop for place in places.values()), default=begin)
    if end > file_size:
        name = max(places, key=lambda name: places[name].stop)
        refuse(f"{file} is damaged: tensor {shown(name)} ends behind the file")  # rule 3
    if end < file_size or sum(place.size for place in places.values()) != end - begin:
        refuse(f"{file} holds bytes that belong to no tensor")


def _refuse_row(path: Path, name: str, what: str) -> NoReturn:
    refuse(f"{path.name}: tensor {shown(name)} {what}")
