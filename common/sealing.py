"""Converts a published folder into a sealed bundle; a child process with limits does the conversion.

Security rules:
 1. Only files that the engine declares are read, and only by plain names in the folder (`common.source`).
 2. Only the child opens foreign weights; its memory, CPU time, output and duration are limited.
 3. The source digest that the child reports must be the one that was verified, or computed here.
 4. A bundle appears whole, by one rename, and is never changed.

A conversion never costs the serving model its memory: the child refuses to begin if what it needs is not free
("DOES_NOT_FIT"), and if memory runs out all the same, it is the process that the kernel ends first ("OUT_OF_MEMORY").
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from common import reasons
from common.bundle import Bundle, BundleBroken, Provenance, SchemaTooNew, bundle_folder, read_bundle, write_bundle
from common.cgroup import count_oom_kills
from common.clock import Clock, SystemClock
from common.durable import sync_folder
from common.exit_codes import ExitCode
from common.explanation import Explanation, read_explanation
from common.json_load import load_json
from common.settings import inherit_environment
from common.source import ConversionRefused, Source, find_source

Progress = Callable[[int], None]  # receives the per cent of a conversion that are done
_GIB = 1 << 30
_MAX_ERROR_BYTES = 64 << 10
_MAX_PROGRESS_BYTES = 4096  # per read


@dataclass(frozen=True, slots=True)
class ConvertLimits:
    """Limits of the converting child process."""

    timeout_seconds: float = 1800.0
    cpu_seconds: int = 3600
    memory_bytes: int = 0  # RLIMIT_DATA; 0: 3 GiB plus the size of the source
    max_file_bytes: int = 64 * _GIB  # of each written file


class Convert(Protocol):
    """The signature of `run_convert`, for tests that replace it."""

    def __call__(
        self,
        source: Path,
        state: Path,
        revision: str,
        limits: ConvertLimits,
        precision: str,
        *,
        digest: str,
        provenance: Provenance | None,
    ) -> Bundle:
        """See `run_convert`."""
        ...


def run_convert(
    source: Path,
    state: Path,
    revision: str,
    limits: ConvertLimits,
    precision: str = "float32",
    progress: Progress = lambda _percent: None,
    *,
    digest: str = "",
    provenance: Provenance | None = None,
) -> Bundle:
    """Convert a published folder into a sealed bundle; if that bundle exists already, return it unchanged.

    Args:
        source: folder of a revision.
        state: the state folder; the bundle is put into its `bundles/`.
        revision: for people.
        limits: of the child process.
        precision: of the stored weights, one of PRECISIONS.
        progress: receives how many per cent of the weights are converted, on the calling thread.
        digest: the verified source digest of the folder; empty: it is computed here.
        provenance: where the source came from; written into the manifest.

    Raises:
        ConversionRefused: the folder cannot be converted, or a limit was reached.
        OSError: `state` cannot be written.
    """
    seen = find_source(source)
    digest = digest or seen.digest()
    sealed = bundle_folder(state, seen.bundle_digest(digest, precision))
    if (existing := _read_sealed(sealed)) is not None:
        return existing
    staging_root = state / "staging"
    staging_root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="convert-", dir=staging_root))
    try:
        run_child(_command(seen, staging, revision, limits, precision), limits, progress)
        bundle = _read_staged(staging)
        if bundle.source_digest != digest:  # rule 3
            raise ConversionRefused("SOURCE_CHANGED", "the files changed before they were converted")
        if provenance is not None:
            write_bundle(staging, replace(bundle, provenance=provenance))
        return seal(staging, state)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def run_explain(source: Path, limits: ConvertLimits) -> Explanation:
    """Explain what would be read of a published folder; a child process with the same limits reads it.

    Raises:
        ConversionRefused: a limit was reached.
        OSError: there is no temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="hotslot-explain-") as name:
        run_child([*_command_of(source, 0, Path(name), "", "", limits), "--explain"], limits, lambda _percent: None)
        try:
            return read_explanation(Path(name))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConversionRefused("CONVERT_FAILED", "the folder could not be explained") from error


def seal(staging: Path, state: Path) -> Bundle:
    """Move a converted folder to its final name; if that bundle exists already, delete this one and return the other.

    `staging` must be on the same file system as `state`, and its files must be flushed to disk.

    Raises:
        ConversionRefused: the staged folder is not a bundle, or a newer hotslot has sealed this bundle.
        OSError: it cannot be moved.
    """
    bundle = _read_staged(staging)
    target = bundle_folder(state, bundle.bundle_digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    existing = _read_sealed(target)
    if existing is not None:
        shutil.rmtree(staging)
        return existing
    shutil.rmtree(target, ignore_errors=True)  # a broken bundle cannot be loaded
    for file in staging.iterdir():
        file.chmod(0o444)
    sync_folder(staging)
    staging.rename(target)  # rule 4
    sync_folder(target.parent)
    return bundle


def _read_sealed(folder: Path) -> Bundle | None:
    """The bundle that is sealed already; None if there is none, or a broken one."""
    try:
        return read_bundle(folder)
    except SchemaTooNew as error:  # it is whole
        raise ConversionRefused("CONVERT_FAILED", f"the bundle is sealed already: {error}") from error
    except BundleBroken:
        return None


def _read_staged(staging: Path) -> Bundle:
    try:
        return read_bundle(staging)
    except BundleBroken as error:
        raise ConversionRefused("CONVERT_FAILED", f"the conversion wrote no complete bundle: {error}") from error


def _command(source: Source, staging: Path, revision: str, limits: ConvertLimits, precision: str) -> list[str]:
    command = _command_of(source.folder, source.size, staging, source.engine.engine, revision, limits)
    return [*command, "--precision", precision]


def _command_of(
    source: Path, source_bytes: int, into: Path, engine: str, revision: str, limits: ConvertLimits
) -> list[str]:
    memory = limits.memory_bytes or 3 * _GIB + source_bytes
    command = [sys.executable, "-P", "-m", "hotslot_watchdog.launch", "-m", "inference.runner.convert"]
    command += ["--source", str(source.resolve()), "--into", str(into.resolve())]
    command += ["--engine", engine, "--revision", revision]
    command += ["--max-memory-bytes", str(memory), "--max-cpu-seconds", str(limits.cpu_seconds)]
    command += ["--max-file-bytes", str(limits.max_file_bytes), "--parent", str(os.getpid())]
    return command


def run_child(command: list[str], limits: ConvertLimits, progress: Progress) -> None:
    """Run a program that reports like `inference.runner.convert`, in a minimal environment.

    Raises:
        ConversionRefused: it refused, or took too long.
        OSError: it cannot be started.
    """
    # A minimal environment: no exported secret reaches the code that reads foreign files.
    # OpenBLAS comes with numpy and is not used here; without the variable it allocates about 40 MB for each CPU.
    environment = {
        **inherit_environment("PATH", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONUTF8"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    kills = count_oom_kills()
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(  # rule 2
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as child,
    ):
        try:
            _follow_progress(child, limits.timeout_seconds, progress, SystemClock())
        except subprocess.TimeoutExpired as error:
            message = f"the conversion took more than {limits.timeout_seconds:g} s"
            raise ConversionRefused("TIME_LIMIT", message) from error
        finally:
            child.kill()  # does nothing if it has ended
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - _MAX_ERROR_BYTES))
        if child.returncode == -signal.SIGKILL and count_oom_kills() > kills:
            raise ConversionRefused(
                reasons.OUT_OF_MEMORY, "memory ran out during the conversion, and the kernel ended it"
            )
        _check_exit_code(child.returncode, errors.read())


def _follow_progress(child: subprocess.Popen[bytes], timeout_seconds: float, progress: Progress, clock: Clock) -> None:
    """Report the child's progress until it ends.

    Raises:
        subprocess.TimeoutExpired: it did not end in time.
    """
    if child.stdout is None:
        raise RuntimeError("the child was started without a pipe")
    poller = select.poll()
    poller.register(child.stdout, select.POLLIN)
    until = clock.monotonic() + timeout_seconds
    while poller.poll(max(0.0, until - clock.monotonic()) * 1000):
        words = os.read(child.stdout.fileno(), _MAX_PROGRESS_BYTES).split()
        if not words:
            child.wait(max(0.0, until - clock.monotonic()))
            return
        if words[-1].isdigit():
            progress(min(100, int(words[-1])))
    raise subprocess.TimeoutExpired(child.args, timeout_seconds)


def _check_exit_code(exit_code: int, stderr: bytes) -> None:
    """Raise the error that a child's exit code and last line mean; return if it succeeded."""
    if exit_code == 0:
        return
    row: object = None
    if exit_code == ExitCode.CONVERSION_REFUSED:
        with contextlib.suppress(ValueError, IndexError):
            row = load_json(stderr.decode("utf-8").splitlines()[-1], takes_halves=True)
    if not isinstance(row, dict):
        raise ConversionRefused("CONVERT_FAILED", f"the conversion ended with exit code {exit_code}")
    needed, free = (row.get(name) for name in ("needed_bytes", "free_bytes"))
    # Half of a surrogate pair, which a foreign file may have, would be refused by the journal.
    message = str(row.get("message")).encode("utf-8", "backslashreplace").decode()
    raise ConversionRefused(
        str(row.get("reason")),
        message,
        needed if isinstance(needed, int) else 0,
        free if isinstance(free, int) else -1,
    )
