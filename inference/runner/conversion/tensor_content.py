"""Finds numbers that no model has, such as NaN, in published weights: without torch, a few MiB at a time."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.runner.conversion.tensor_location import FLOATS, TensorLocation

NOT_FINITE = "holds NaN or infinity"
OVERFLOWN = "holds an infinite value (float16 overflows above 65504)"
NEGATIVE_VARIANCE = "holds a negative variance"
NORM_EPSILON = 1e-5  # default of torch.nn.BatchNorm2d
_VARIANCE = ".running_var"
_PIECE_BYTES = 8 << 20
_MAX_FLOAT32 = float(np.finfo(np.float32).max)  # all weights are read as float32
_DTYPES: Mapping[str, str] = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_BFLOAT16_EXPONENT = 0x7F80


def find_bad_tensors(locations: Mapping[str, TensorLocation]) -> dict[str, str]:
    """Return what is wrong with a tensor's numbers, by name; of tensors that are as they should be, nothing.

    Args:
        locations: of tensors in files that were checked.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for name, location in locations.items():
        if location.dtype in FLOATS:
            problem = _find_problem(name, location)
            if problem:
                found[name] = problem
    return found


def are_all_zero(locations: Iterable[TensorLocation]) -> bool:
    """Whether all matrices hold only zeros; reads until the first other number.

    Raises:
        OSError: a file cannot be read.
    """
    matrices = [one for one in locations if one.dtype in FLOATS and len(one.shape) > 1]
    return bool(matrices) and not any(bool(numbers.any()) for one in matrices for numbers in _read(one))


def describe_bad_tensor(file: str, name: str, problem: str, more: int = 0) -> str:
    """The sentence that refuses a tensor for one of the problems above; `more` tensors have one too."""
    others = f" (and {more} more)" if more else ""
    advice = ": save it again as float32 or bfloat16" if problem == OVERFLOWN else ", supported: finite numbers"
    return f"{file}: tensor {name} {problem}{others}{advice}"


def _find_problem(name: str, location: TensorLocation) -> str:
    for numbers in _read(location):
        if location.dtype == "bfloat16":
            if bool((numbers & _BFLOAT16_EXPONENT == _BFLOAT16_EXPONENT).any()):
                return NOT_FINITE
            continue
        if location.dtype == "float16":  # the largest float32 as float16 is infinity, which no comparison finds
            if not bool(np.isfinite(numbers).all()):
                return NOT_FINITE if bool(np.isnan(numbers).any()) else OVERFLOWN
        # A comparison with NaN is false.
        elif not bool((np.abs(numbers) <= _MAX_FLOAT32).all()):
            return NOT_FINITE
        if name.endswith(_VARIANCE) and bool((numbers <= -NORM_EPSILON).any()):
            return NEGATIVE_VARIANCE
    return ""


def _read(location: TensorLocation) -> Iterator[npt.NDArray[Any]]:
    with location.path.open("rb") as file:
        for done in range(0, location.size, _PIECE_BYTES):
            piece = os.pread(file.fileno(), min(_PIECE_BYTES, location.size - done), location.start + done)
            yield np.frombuffer(piece, _DTYPES[location.dtype])
