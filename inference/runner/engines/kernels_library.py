"""Compiles `kernels.cpp`, keeps the library in a folder and loads it only as it was built.

Security rules:
 1. Only the source of this package is compiled; no argument of the compiler comes from outside of this file.
 2. A library is loaded only from a folder, and only as a file, that this user owns and no one else can write; what a
    folder held while others could write it is removed.
 3. A library appears whole and flushed, by one rename, after another process has called it and found its numbers right.
 4. Its name has the SHA-256 of its content, which is compared before it is loaded.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from common.clock import SystemClock
from common.durable import read_bounded, write_atomic

SOURCE = Path(__file__).with_name("kernels.cpp")
BUILD_SECONDS = 20.0  # of each command of a build, which takes one second
_WAIT_SECONDS = 0.25  # between two progress reports
_LEFTOVER_SECONDS = 3600.0
_MAX_BYTES = 1 << 24
_CLOCK = SystemClock()
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w")
MAX_ERROR = 1e-5
_CHECK = (
    "import ctypes, sys; find = ctypes.CDLL(sys.argv[1]).find_error; find.restype = ctypes.c_double; "
    "sys.exit(not find(ctypes.c_uint(2), ctypes.c_void_p()) < float(sys.argv[2]))"
)
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class NoCompilerError(ValueError):
    """This machine has no C++ compiler."""


@dataclass(frozen=True, slots=True)
class Building:
    """What a build reports to."""

    log: Callable[..., None]  # name of an event, level, fields
    progress: Callable[[float], None]  # share of the time limit


def open_library(
    folder: Path, instructions: tuple[str, ...], check: Callable[[ctypes.CDLL], None], building: Building
) -> ctypes.CDLL:
    """Load the library, which is built if there is none that can be loaded.

    Args:
        folder: of libraries; is created.
        instructions: the compiler's flags for this processor.
        check: raises ValueError or AttributeError if a loaded library is not right.
        building: for events and progress.

    Raises:
        OSError, ValueError, AttributeError: there is none.
    """
    source = SOURCE.read_bytes()
    digest = hashlib.sha256(b"\0".join((source, *(flag.encode() for flag in (*_FLAGS, *instructions))))).hexdigest()
    stem = f"kernels-{digest[:32]}"
    _own_folder(folder)
    for path in sorted(folder.glob(f"{stem}-*.so")):
        try:
            return _load(path, check)
        except (OSError, ValueError, AttributeError) as error:
            path.unlink(missing_ok=True)
            building.log("kernels_removed", level="warning", reason=describe(error))
    compilers = _find_compilers()
    if not compilers:
        raise NoCompilerError("there is no C++ compiler")
    memory = folder / f"{stem}.failed"
    if (failed := _read_failure(memory, compilers)) is not None:
        raise ValueError(f"an earlier build failed: {failed}")
    _remove_leftovers(folder, stem)
    reason = ""
    for compiler in compilers:
        try:
            path = _build(compiler, source, instructions, folder / stem, building)
            library = _load(path, check)
        except (subprocess.SubprocessError, ValueError, AttributeError) as error:
            reason = describe(error).replace(str(folder), "…")
        else:
            building.log("kernels_compiled", compiler=Path(compiler).name)
            memory.unlink(missing_ok=True)
            return library
    for path in folder.glob(f"{stem}-*.so"):
        path.unlink(missing_ok=True)
    write_atomic(memory, json.dumps({"compilers": compilers, "reason": reason}).encode(), 0o600)
    raise ValueError(reason)


def _own_folder(folder: Path) -> None:
    """Create it. A folder of this user that others can write, as a mounted volume's may be, is closed and emptied."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ValueError("their folder belongs to another user")
    if found.st_mode & OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)
        for path in folder.glob("kernels-*"):
            path.unlink()


def _load(path: Path, check: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & OTHERS_WRITE:
        raise ValueError("the library belongs to another user, or others can write it")
    if hashlib.sha256(read_bounded(path, _MAX_BYTES)).hexdigest() != path.stem.rpartition("-")[2]:
        raise ValueError("the library is damaged")
    library = ctypes.CDLL(str(path))
    check(library)
    return library


def _find_compilers() -> dict[str, int]:
    """Path and time of change of every compiler, in order of preference."""
    found = (shutil.which(name) for name in _COMPILERS)
    real = {Path(path).resolve(): path for path in reversed([path for path in found if path])}
    return {path: target.stat().st_mtime_ns for target, path in reversed(real.items())}


def _read_failure(path: Path, compilers: dict[str, int]) -> str | None:
    """Why these compilers failed before."""
    try:
        failure = json.loads(read_bounded(path, _MAX_BYTES))
        return str(failure["reason"]) if failure["compilers"] == compilers else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_leftovers(folder: Path, stem: str) -> None:
    """Remove libraries of other sources, and what builds left that did not end."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.name.startswith("."):
                if _CLOCK.now().timestamp() - path.lstat().st_mtime > _LEFTOVER_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.name.startswith("kernels-") and not path.name.startswith(stem):
                path.unlink()


def _build(compiler: str, source: bytes, instructions: Iterable[str], stem: Path, building: Building) -> Path:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=stem.parent) as name:
        built = Path(name) / "kernels.so"
        environment = {"PATH": f"{Path(compiler).parent}{os.pathsep}{os.defpath}", "TMPDIR": name, "LC_ALL": "C"}
        command = [compiler, *_FLAGS, *instructions, "-x", "c++", "-", "-o", str(built)]
        run_command(command, source, environment, building.progress)
        check = [sys.executable, "-I", "-S", "-c", _CHECK, str(built), str(MAX_ERROR)]
        run_command(check, b"", environment, building.progress)
        content = read_bounded(built, _MAX_BYTES)
    path = stem.with_name(f"{stem.name}-{hashlib.sha256(content).hexdigest()}.so")
    write_atomic(path, content, 0o500)
    return path


def run_command(
    command: list[str], text: bytes, environment: dict[str, str], progress: Callable[[float], None]
) -> None:
    """Run a command in a session of its own, of which nothing is left after the limit."""
    began = _CLOCK.monotonic()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            errors = _communicate(process, text, began + BUILD_SECONDS, progress)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[:1], stderr=errors)


def _communicate(
    process: subprocess.Popen[bytes], text: bytes, deadline: float, progress: Callable[[float], None]
) -> bytes:
    rest: bytes | None = text
    while True:
        left = deadline - _CLOCK.monotonic()
        progress(min(1.0, 1 - left / BUILD_SECONDS))
        try:
            return process.communicate(rest, timeout=max(0.0, min(_WAIT_SECONDS, left)))[1]
        except subprocess.TimeoutExpired:
            rest = None
            if left <= 0:
                raise


def describe(error: Exception) -> str:
    """What failed, without a path."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"a command ended with status {error.returncode}: {error.stderr.decode(errors='replace')[-300:]}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"a command took more than {BUILD_SECONDS:g} s"
    return str(error) if isinstance(error, ValueError) else type(error).__name__
