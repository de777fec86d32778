"""From a folder as it was published to a sealed bundle; the conversion itself is a child with limits.

Numbered rules of trust:
 1. Only files that the engine declares are read, and only by plain names inside the folder (`common.source`).
 2. Foreign weights are opened by the child alone, which has limits of memory, CPU time, output and time.
 3. What the child says it read must be what was verified before, or what this process hashed.
 4. A bundle appears by one rename, whole, and is never written again.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from common.bundle import Bundle, BundleBroken, Provenance, bundle_folder, read_bundle, write_bundle
from common.clock import Clock, SystemClock
from common.durable import sync_folder
from common.exit_codes import ExitCode
from common.settings import inherit_environment
from common.source import PRECISIONS, ConversionRefused, Source, find_source

__all__ = [
    "PRECISIONS",
    "ConversionRefused",
    "Convert",
    "ConvertLimits",
    "Source",
    "find_source",
    "run_convert",
    "seal",
]

Progress = Callable[[int], None]  # per cent of a conversion
_GIB = 1 << 30
_MAX_SENTENCE_BYTES = 64 << 10
_MAX_SAID_BYTES = 4096  # of progress, at a time


@dataclass(frozen=True, slots=True)
class ConvertLimits:
    """How much the child may use."""

    timeout_seconds: float = 1800.0
    cpu_seconds: int = 3600
    memory_bytes: int = 0  # of data; 0: 3 GiB and the source's size
    max_file_bytes: int = 64 * _GIB  # of one written file


class Convert(Protocol):
    """From a published folder to a sealed bundle, at once if it is sealed already: `run_convert`, or a stand-in."""

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
        """Convert.

        Raises:
            ConversionRefused: the folder cannot become a bundle.
        """
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
    """Turn a published folder into a sealed bundle; at once if it is sealed already, as it was sealed then.

    Args:
        source: folder of a revision.
        state: hotslot's own folder; the bundle goes to its `bundles/`.
        revision: for people.
        limits: of the child.
        precision: of the stored weights, one of PRECISIONS.
        progress: hears how many per cent of the weights are converted, on the calling thread.
        digest: the source digest that the folder was verified to have; empty: it is hashed here.
        provenance: where the source came from, to be sealed with it.

    Raises:
        ConversionRefused: the source is not convertible, or a limit was met.
        OSError: `state` cannot be written.
    """
    seen = find_source(source)
    digest = digest or seen.digest()
    sealed = bundle_folder(state, seen.bundle_digest(digest, precision))
    with contextlib.suppress(BundleBroken):
        return read_bundle(sealed)
    staging_root = state / "staging"
    staging_root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="convert-", dir=staging_root))
    try:
        _run_child(_command(seen, staging, revision, limits, precision), limits, progress)
        bundle = _read_staged(staging)
        if bundle.source_digest != digest:  # rule 3
            raise ConversionRefused("SOURCE_CHANGED", "the files changed before they were converted")
        if provenance is not None:
            write_bundle(staging, replace(bundle, provenance=provenance))
        return seal(staging, state)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(staging: Path, state: Path) -> Bundle:
    """Move a converted folder to its final name; if it is there already, drop this one.

    `staging` must be on the same file system as `state`, its files written through to the disk.

    Raises:
        ConversionRefused: the staged folder is no bundle.
        OSError: it cannot be moved.
    """
    bundle = _read_staged(staging)
    target = bundle_folder(state, bundle.bundle_digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        existing = read_bundle(target)
    except BundleBroken:
        shutil.rmtree(target, ignore_errors=True)  # a broken one serves nobody
    else:
        shutil.rmtree(staging)
        return existing
    for file in staging.iterdir():
        file.chmod(0o444)
    sync_folder(staging)
    staging.rename(target)  # rule 4
    sync_folder(target.parent)
    return bundle


def _read_staged(staging: Path) -> Bundle:
    try:
        return read_bundle(staging)
    except BundleBroken as error:
        raise ConversionRefused("CONVERT_FAILED", f"the conversion left no whole bundle: {error}") from error


def _command(source: Source, staging: Path, revision: str, limits: ConvertLimits, precision: str) -> list[str]:
    memory = limits.memory_bytes or 3 * _GIB + source.size
    command = [sys.executable, "-P", "-m", "hotslot_watchdog.launch", "-m", "inference.runner.convert"]
    command += ["--source", str(source.folder.resolve()), "--into", str(staging.resolve())]
    command += ["--engine", source.engine.engine, "--revision", revision, "--precision", precision]
    command += ["--max-memory-bytes", str(memory), "--max-cpu-seconds", str(limits.cpu_seconds)]
    command += ["--max-file-bytes", str(limits.max_file_bytes), "--parent", str(os.getpid())]
    return command


def _run_child(command: list[str], limits: ConvertLimits, progress: Progress) -> None:
    # A plain environment: nothing that an operator exported reaches code that reads foreign bytes.
    # OpenBLAS, which comes with numpy and is not used, would allocate about 40 MB for each CPU.
    environment = {**inherit_environment("PATH", "LD_LIBRARY_PATH", "TMPDIR"), "OPENBLAS_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as sentences,
        subprocess.Popen(  # rule 2
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sentences
        ) as child,
    ):
        try:
            _hear(child, limits.timeout_seconds, progress, SystemClock())
        except subprocess.TimeoutExpired as error:
            message = f"the conversion took more than {limits.timeout_seconds:g} s"
            raise ConversionRefused("TIME_LIMIT", message) from error
        finally:
            child.kill()  # whatever happened here, nothing goes on there; nothing if it has ended
        size = sentences.seek(0, os.SEEK_END)
        sentences.seek(max(0, size - _MAX_SENTENCE_BYTES))
        _check_ended(child.returncode, sentences.read())


def _hear(child: subprocess.Popen[bytes], timeout_seconds: float, progress: Progress, clock: Clock) -> None:
    """Pass on what the child says of its progress until it ends.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    if child.stdout is None:
        raise RuntimeError("the child was started without a pipe")
    said = select.poll()
    said.register(child.stdout, select.POLLIN)
    until = clock.monotonic() + timeout_seconds
    while said.poll(max(0.0, until - clock.monotonic()) * 1000):
        words = os.read(child.stdout.fileno(), _MAX_SAID_BYTES).split()
        if not words:
            child.wait(max(0.0, until - clock.monotonic()))
            return
        if words[-1].isdigit():
            progress(min(100, int(words[-1])))
    raise subprocess.TimeoutExpired(child.args, timeout_seconds)


def _check_ended(exit_code: int, stderr: bytes) -> None:
    """Raise what a child's end means, unless it ended well."""
    if exit_code == 0:
        return
    row: object = None
    if exit_code == ExitCode.CONVERSION_REFUSED:
        with contextlib.suppress(ValueError, IndexError):
            row = json.loads(stderr.decode("utf-8").splitlines()[-1])
    if not isinstance(row, dict):
        raise ConversionRefused("CONVERT_FAILED", f"the conversion ended with exit code {exit_code}")
    raise ConversionRefused(str(row.get("reason")), str(row.get("message")))
