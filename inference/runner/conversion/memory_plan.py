"""Plans the memory of a conversion from the shapes of the published tensors, before torch is imported."""

import math
from collections.abc import Iterable

from common import reasons
from common.source import ConversionRefused
from inference.runner.conversion.tensor_location import TensorLocation

# Measured: docs/explanation/decisions/conversion.md.
BASE_BYTES = 350 << 20  # Python and torch, with the libraries' writable pages
TENSOR_FACTOR = 1.75  # one tensor is in memory as it was read and as it is written
MARGIN = 1.1
_FLOAT_BYTES = 4
_MIB = 1 << 20


def estimate_bytes(tensors: Iterable[TensorLocation]) -> int:
    """Memory that a conversion needs: it reads and writes one tensor at a time."""
    largest = max((math.prod(tensor.shape) for tensor in tensors), default=0)
    return round(MARGIN * (BASE_BYTES + TENSOR_FACTOR * _FLOAT_BYTES * largest))


def check_memory(tensors: Iterable[TensorLocation], free: int | None) -> None:
    """Return if a conversion of these tensors fits.

    Args:
        tensors: of the published model.
        free: free bytes; unknown free memory refuses nothing.

    Raises:
        ConversionRefused: it does not fit; says how much it needs and how much is free.
    """
    needed = estimate_bytes(tensors)
    if free is not None and needed > free:
        message = f"the conversion needs about {needed / _MIB:.0f} MiB of memory; {free / _MIB:.0f} MiB are free"
        raise ConversionRefused(reasons.DOES_NOT_FIT, message, needed, free)
