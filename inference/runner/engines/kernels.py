"""Attention and products by `kernels.cpp`, which a runner compiles once for its processor and its state folder.

torch's operations are used where there is no C++ compiler, where the folder cannot be used, or where results are wrong.

Security rules:
 1. Only the source of this package is compiled; no argument of the compiler comes from outside of this file.
 2. A library is loaded only from a folder, and only as a file, that this user owns and no one else can write.
 3. A library appears whole, by one rename, after another process has called it and found its numbers right.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
BUILD_SECONDS = 20.0  # a build takes one second
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w")
_INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
}
_MAX_ERROR = 1e-5
_CHECK = (
    "import ctypes, sys; find = ctypes.CDLL(sys.argv[1]).find_error; find.restype = ctypes.c_double; "
    "sys.exit(not find() < float(sys.argv[2]))"
)
_COLUMN_STEP, _INNER_STEP = 32, 16  # sizes of products are multiples of these
_ATTEND = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}
_ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}
_log = logging.getLogger(__name__)


class Kernels:
    """The functions of a compiled library. They run on torch's own threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Use a checked library."""
        self._library = library
        # Of the OpenMP library that torch has loaded; without it one thread computes.
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self._parallel = ctypes.c_void_p() if parallel is None else ctypes.cast(parallel, ctypes.c_void_p)

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
        self, x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none", other: Tensor | None = None
    ) -> Tensor:
        """Compute activation(x weightᵀ + bias + other) in float32.

        Args:
            x: (…, inner).
            weight: (columns, inner), which `supports_products`.
            bias: (columns,).
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


_folder: Path | None = None


def use_folder(folder: Path | None) -> None:
    """Choose where `get_kernels` keeps libraries; None: there are no kernels. Call before a model computes."""
    global _folder  # noqa: PLW0603  one process loads one model
    _folder = folder
    get_kernels.cache_clear()


@functools.cache
def get_kernels() -> Kernels | None:
    """The kernels for this processor, or None. The first call compiles them if no process of this folder has."""
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    if _folder is None or instructions is None:
        return None
    try:
        return Kernels(_open(_folder, instructions))
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        _log.warning("compiled kernels are not used, torch's operations are: %s", _describe(error))
        return None


def _open(folder: Path, instructions: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library, which is built if it is missing.

    Raises:
        OSError, SubprocessError, ValueError: it cannot be built or is not to be trusted.
    """
    source = SOURCE.read_bytes()
    digest = hashlib.sha256(b"\0".join((source, *(flag.encode() for flag in (*_FLAGS, *instructions))))).hexdigest()
    path = folder / f"kernels-{digest[:32]}.so"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder)
    if not path.exists():
        _build(source, instructions, path)
    _check_owner(path)
    library = ctypes.CDLL(str(path))
    library.find_error.restype = ctypes.c_double
    error: float = library.find_error()
    if not error < _MAX_ERROR:
        raise ValueError(f"their results are wrong by {error:g}")
    return library


def _build(source: bytes, instructions: tuple[str, ...], path: Path) -> None:
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise ValueError("there is no C++ compiler")
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as name:
        built = Path(name) / path.name
        environment = {"PATH": f"{Path(compiler).parent}{os.pathsep}{os.defpath}", "TMPDIR": name, "LC_ALL": "C"}
        command = [compiler, *_FLAGS, *instructions, "-x", "c++", "-", "-o", str(built)]
        _run(command, source, environment)
        _run([sys.executable, "-I", "-S", "-c", _CHECK, str(built), str(_MAX_ERROR)], b"", environment)
        built.chmod(0o500)
        built.replace(path)
    _log.info("kernels were compiled by %s", compiler)


def _run(command: list[str], text: bytes, environment: dict[str, str]) -> None:
    subprocess.run(command, input=text, env=environment, capture_output=True, check=True, timeout=BUILD_SECONDS)


def _check_owner(path: Path) -> None:
    found = path.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or stat.S_ISLNK(found.st_mode):
        raise ValueError("their folder or file belongs to another user, or others can write it")


def _describe(error: Exception) -> str:
    """What failed, without a path."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"a command ended with status {error.returncode}: {error.stderr.decode(errors='replace')[-300:]}"
    return str(error) if isinstance(error, ValueError) else type(error).__name__
