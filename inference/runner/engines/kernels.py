"""Attention and products by `kernels.cpp`, which a runner compiles once for its processor and its state folder.

torch's operations are used where there is no C++ compiler, where the folder cannot be used, or where results are wrong.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from inference.runner.engines.base import log_nothing
from inference.runner.engines.build_command import describe
from inference.runner.engines.kernels_library import MAX_ERROR, Building, NoCompilerError, open_library

INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
}
_COLUMN_STEP, _INNER_STEP = 32, 16  # sizes of products are multiples of these
_ATTEND = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}
_ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}


class Kernels:
    """The functions of a compiled library. They run on torch's own threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Use a checked library."""
        self._library = library
        self._parallel = _find_parallel()

    @property
    def has_threads(self) -> bool:
        """Whether torch's threads can be used; otherwise one computes."""
        return bool(self._parallel)

    def supports_attention(self, dtype: torch.dtype, size: int) -> bool:
        """Whether `attend` takes heads of this size."""
        return dtype in _ATTEND and size % _COLUMN_STEP == 0

    def attend(self, projections: Tensor, bias: Tensor, first_head: int, mixed: Tensor) -> None:
        """Write the attention of some heads of one row to `mixed`. All arguments are contiguous and have one dtype.

        Args:
            projections: (tokens, 3, all heads, size): queries, keys and values.
            bias: (some heads, tokens, tokens), added to the scores.
            first_head: of these heads, among all.
            mixed: (tokens, all heads, size).
        """
        tokens, _, heads, size = projections.shape
        sizes = (tokens, heads, size, first_head, len(bias))
        function = getattr(self._library, _ATTEND[projections.dtype])
        self._call(function, _address(projections), _address(bias), *map(ctypes.c_long, sizes), _address(mixed))

    def supports_products(self, weight: Tensor) -> bool:
        """Whether `multiply` takes this weight."""
        columns, inner = weight.shape
        is_right = weight.dtype == torch.float32 and weight.is_contiguous()
        return is_right and columns % _COLUMN_STEP == 0 and inner % _INNER_STEP == 0

    def multiply(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none", other: Tensor | None = None
    ) -> Tensor:
        """Compute activation(x weightᵀ + bias + other) in float32.

        Args:
            x: (…, inner).
            weight: (columns, inner), which `supports_products`.
            bias: (columns,), contiguous.
            activation: "none", "gelu" (by the error function) or "relu".
            other: of the result's shape.
        """
        columns, inner = weight.shape
        x = x.contiguous()
        other = None if other is None else other.contiguous()
        result = x.new_empty(*x.shape[:-1], columns)
        rows = x.numel() // inner
        if rows:
            tensors = (_address(x), _address(weight), _address(bias), _address(other))
            sizes = map(ctypes.c_long, (rows, columns, inner))
            self._call(self._library.multiply, *tensors, *sizes, _ACTIVATIONS[activation], _address(result))
        return result

    def _call(self, function: Callable[..., int], *arguments: object) -> None:
        if function(*arguments, ctypes.c_uint(torch.get_num_threads()), self._parallel):
            raise MemoryError("a kernel could not allocate memory")


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _find_parallel() -> ctypes.c_void_p:
    """Of GNU's OpenMP, which torch has loaded; null where it has another one."""
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.c_void_p() if parallel is None else ctypes.cast(parallel, ctypes.c_void_p)


_kernels: Kernels | None = None
_name = ""


def get_kernels() -> Kernels | None:
    """The kernels that this process has loaded, if they compute on as many threads as torch does."""
    return _kernels if _kernels is not None and (_kernels.has_threads or torch.get_num_threads() == 1) else None


def name_kernels() -> str:
    """The instructions of the kernels that compute, "AVX2" or "AVX512"; "none" if torch computes instead of them.

    Empty if the loaded model has no use for them, or they are turned off.
    """
    return _name


def load_kernels(
    folder: Path | None,
    log: Callable[..., None] = log_nothing,
    progress: Callable[[float], None] = lambda _share: None,
) -> None:
    """Load the kernels for this processor, which are compiled if no process of this folder has. Call before a warm-up.

    Args:
        folder: of libraries; None: there are no kernels.
        log: takes the name, the level and the fields of an event.
        progress: takes the share of a build's time limit, while it lasts.
    """
    global _kernels, _name  # noqa: PLW0603  one process loads one model
    _kernels, _name = None, "" if folder is None else "none"
    if folder is None:
        return
    capability = torch.backends.cpu.get_cpu_capability()
    instructions = INSTRUCTIONS.get(capability)
    if instructions is None:
        log("kernels_unused", reason="the processor has no AVX2")
        return
    try:
        _kernels = Kernels(open_library(folder, instructions, _check, Building(log, progress)))
    except (OSError, ValueError, AttributeError) as error:
        log("kernels_unused", level="info" if isinstance(error, NoCompilerError) else "warning", reason=describe(error))
        return
    if not _kernels.has_threads:
        log("kernels_unused", level="warning", reason="torch has other threads than GNU OpenMP's; one thread uses them")
        return
    _name = capability


def _check(library: ctypes.CDLL) -> None:
    library.find_error.restype = ctypes.c_double
    error: float = library.find_error(ctypes.c_uint(2), _find_parallel())
    if not error < MAX_ERROR:
        raise ValueError(f"their results are wrong by {error:g}")
