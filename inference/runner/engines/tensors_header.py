"""What stands in a safetensors file, from its header alone: no tensor is read."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER_BYTES = 32 << 20
_LENGTH = struct.Struct("<Q")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the file."""

    name: str
    elements: int
    stored_bytes: int
    is_float: bool

    def bytes_at(self, float_bytes: int) -> int:
        """Its size when its floats have so many bytes; integers stay as they are."""
        return self.elements * float_bytes if self.is_float else self.stored_bytes


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is no such file, or its header is larger than is read.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            raise ValueError(f"{path.name} is too short for a header")
        (length,) = _LENGTH.unpack(start)
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"the header of {path.name} has {length} bytes, at most {MAX_HEADER_BYTES} are read")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path.name} is no object")
    return [_tensor(name, row) for name, row in header.items() if name != "__metadata__"]


def _tensor(name: str, row: object) -> StoredTensor:
    try:
        begin, end = row["data_offsets"]  # type: ignore[index]  # foreign: a wrong form is caught
        return StoredTensor(name, math.prod(row["shape"]), end - begin, row["dtype"] in _FLOATS)  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the header's row of {name[:80]!r} is malformed") from error
