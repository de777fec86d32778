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
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clock import SystemClock
from common.durable import LockTimeout, hold_lock, read_bounded, write_atomic
from common.json_load import load_json
from inference.runner.engines.build_command import BUILD_SECONDS, MAX_BYTES, describe, run_command

SOURCE = Path(__file__).with_name("kernels.cpp")
FAILURE_SECONDS = 3600.0  # for which a failed build is not tried again: the disk may have been full
_LOCK = ".lock"
_LOCK_SECONDS = 2 * BUILD_SECONDS  # for the build of another process
_LOCK_STEP_SECONDS = 0.25  # between two progress reports
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
    """Receives the progress of a build."""

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
    stem = folder / f"kernels-{digest[:32]}"
    _own_folder(folder)
    if (found := _find_library(stem, check, building)) is None:
        compilers = _find_compilers()
        if not compilers:
            raise NoCompilerError("there is no C++ compiler")
        with _lock_folder(folder, building.progress):
            _remove_others(stem, stem)
            found = _find_library(stem, check, building)  # another process may have built it meanwhile
            return found[0] if found else _build_library(compilers, source, instructions, stem, check, building)
    with contextlib.suppress(OSError), hold_lock(folder / _LOCK, 0.0):
        _remove_others(stem, found[1])
    return found[0]


def _find_library(
    stem: Path, check: Callable[[ctypes.CDLL], None], building: Building
) -> tuple[ctypes.CDLL, Path] | None:
    """Load a library that an earlier build has left; those that cannot be loaded are removed."""
    for path in sorted(stem.parent.glob(f"{stem.name}-*.so")):
        try:
            return _load(path, check), path
        except (OSError, ValueError, AttributeError) as error:
            with contextlib.suppress(OSError):  # the build then tells why
                path.unlink(missing_ok=True)
                building.log("kernels_removed", level="warning", reason=describe(error))
    return None


def _build_library(
    compilers: Mapping[str, int],
    source: bytes,
    instructions: tuple[str, ...],
    stem: Path,
    check: Callable[[ctypes.CDLL], None],
    building: Building,
) -> ctypes.CDLL:
    """Try each compiler; what fails is not tried again for a while."""
    memory = stem.with_suffix(".failed")
    if (failed := _read_failure(memory, compilers)) is not None:
        raise ValueError(f"an earlier build failed: {failed}")
    reason = ""
    for compiler in compilers:
        try:
            path = _build(compiler, source, instructions, stem, building)
            library = _load(path, check)
        except (subprocess.SubprocessError, ValueError, AttributeError) as error:
            reason = describe(error).replace(str(stem.parent), "…")
        else:
            building.log("kernels_compiled", compiler=Path(compiler).name)
            memory.unlink(missing_ok=True)
            return library
    for path in stem.parent.glob(f"{stem.name}-*.so"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the disk may be full, which the reason tells
        write_atomic(memory, json.dumps({"compilers": compilers, "reason": reason}).encode(), 0o600)
    raise ValueError(reason)


@contextlib.contextmanager
def _lock_folder(folder: Path, progress: Callable[[float], None]) -> Iterator[None]:
    """Hold the folder's lock, which the kernel releases when this process ends.

    Raises:
        ValueError: another process holds it for too long.
        OSError: there can be no lock.
    """
    ends = _CLOCK.monotonic() + _LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            progress(0.0)
            try:
                stack.enter_context(hold_lock(folder / _LOCK, _LOCK_STEP_SECONDS))
                break
            except LockTimeout as error:
                if _CLOCK.monotonic() > ends:
                    raise ValueError("another process has compiled them for too long") from error
        yield


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
    if hashlib.sha256(read_bounded(path, MAX_BYTES)).hexdigest() != path.stem.rpartition("-")[2]:
        raise ValueError("the library is damaged")
    library = ctypes.CDLL(str(path))
    check(library)
    return library


def _find_compilers() -> dict[str, int]:
    """Path and time of change of every compiler, in order of preference."""
    found = (shutil.which(name) for name in _COMPILERS)
    real = {Path(path).resolve(): path for path in reversed([path for path in found if path])}
    return {path: target.stat().st_mtime_ns for target, path in reversed(real.items())}


def _read_failure(path: Path, compilers: Mapping[str, int]) -> str | None:
    """Why these compilers failed in the last hour."""
    try:
        if abs(_CLOCK.now().timestamp() - path.stat().st_mtime) > FAILURE_SECONDS:
            return None
        failure = load_json(read_bounded(path, MAX_BYTES), takes_halves=True)
        return str(failure["reason"]) if failure["compilers"] == compilers else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_others(stem: Path, kept: Path) -> None:
    """Remove what killed builds have left, and libraries that `kept` does not begin the name of. Under the lock."""
    for path in stem.parent.iterdir():
        is_ours = path.name.startswith((".build-", ".kernels-", "kernels-"))
        if is_ours and not path.name.startswith((kept.name, f"{stem.name}.")):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build(compiler: str, source: bytes, instructions: tuple[str, ...], stem: Path, building: Building) -> Path:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=stem.parent, ignore_cleanup_errors=True) as name:
        built = Path(name) / "kernels.so"
        environment = {"PATH": f"{Path(compiler).parent}{os.pathsep}{os.defpath}", "TMPDIR": name, "LC_ALL": "C"}
        command = [compiler, *_FLAGS, *instructions, "-x", "c++", "-", "-o", str(built)]
        run_command(command, source, environment, building.progress)
        check = [sys.executable, "-I", "-S", "-c", _CHECK, str(built), str(MAX_ERROR)]
        run_command(check, b"", environment, building.progress)
        content = read_bounded(built, MAX_BYTES)
    path = stem.with_name(f"{stem.name}-{hashlib.sha256(content).hexdigest()}.so")
    write_atomic(path, content, 0o500)
    return path
