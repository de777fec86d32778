"""From a folder as it was published to a sealed bundle; the conversion itself is a child with limits.

Numbered rules of trust:
 1. Only files that the engine declares are read, and only by plain names inside the folder.
 2. Foreign weights are opened by the child alone, which has limits of memory, CPU time, output and time.
 3. What the child says it read must be what this process hashed.
 4. A bundle appears by one rename, whole, and is never written again.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.bundle import (
    Bundle,
    BundleBroken,
    BundleFile,
    bundle_digest,
    bundle_folder,
    hash_file,
    read_bundle,
    source_digest,
)
from common.durable import read_bounded, sync_folder
from common.engine_files import (
    CONFIGURATION,
    MAX_CONFIG_BYTES,
    EngineFiles,
    FilesMissing,
    declared_files,
    engine_for,
    shards_of,
)
from common.settings import inherited_environment

REFUSED_EXIT_CODE = 3  # of the child: one JSON line on stderr says why
PRECISIONS = ("float32", "bfloat16")
_INDEX_SUFFIX = ".index.json"
_ROOT = Path(__file__).resolve().parent.parent
_GIB = 1 << 30
_MAX_SENTENCE_BYTES = 64 << 10


class ConversionRefused(ValueError):
    """A published folder cannot become a bundle.

    Attributes:
        reason: for machines, for example "CONFIG_UNSUPPORTED", "WEIGHTS_BROKEN", "TIME_LIMIT".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ConvertLimits:
    """How much the child may use."""

    timeout_seconds: float = 1800.0
    cpu_seconds: int = 3600
    memory_bytes: int = 0  # of data; 0: 3 GiB and twice the source's weights
    max_file_bytes: int = 64 * _GIB  # of one written file


@dataclass(frozen=True, slots=True)
class Source:
    """A published folder, looked at without torch."""

    folder: Path
    engine: EngineFiles
    files: tuple[BundleFile, ...]  # the declared ones, hashed, sorted by name

    @property
    def digest(self) -> str:
        """Names what was published."""
        return source_digest(self.files)

    @property
    def size(self) -> int:
        """Bytes of all declared files."""
        return sum(file.size for file in self.files)

    def bundle_digest(self, precision: str) -> str:
        """Names what this source becomes."""
        return bundle_digest(self.digest, self.engine.engine, self.engine.converter, precision)


def read_source(folder: Path) -> Source:
    """Find the engine of a published folder and hash the files that it declares.

    Raises:
        ConversionRefused: no engine of this build serves it, or files are missing.
    """
    try:
        configuration = _read_object(folder, CONFIGURATION)
        engine = _engine_of(configuration)
        names = _declared_names(folder, engine, configuration)
        files = tuple(hash_file(folder / name) for name in names)
    except FilesMissing as error:
        raise ConversionRefused("FILES_MISSING", str(error)) from error
    except OSError as error:
        raise ConversionRefused("SOURCE_UNREADABLE", f"the folder cannot be read: {error.strerror}") from error
    return Source(folder, engine, files)


def run_convert(source: Path, state: Path, revision: str, limits: ConvertLimits, precision: str = "float32") -> Bundle:
    """Turn a published folder into a sealed bundle; at once if it is sealed already.

    Args:
        source: folder of a revision.
        state: hotslot's own folder; the bundle goes to its `bundles/`.
        revision: for people.
        limits: of the child.
        precision: of the stored weights, one of PRECISIONS.

    Raises:
        ConversionRefused: the source is not convertible, or a limit was met.
        OSError: `state` cannot be written.
    """
    seen = read_source(source)
    sealed = bundle_folder(state, seen.bundle_digest(precision))
    with contextlib.suppress(BundleBroken):
        return read_bundle(sealed)
    staging_root = state / "staging"
    staging_root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="convert-", dir=staging_root))
    try:
        _run_child(seen, staging, revision, limits, precision)
        bundle = _read_staged(staging)
        if bundle.source_digest != seen.digest:  # rule 3
            raise ConversionRefused("SOURCE_CHANGED", "the source changed while it was converted")
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


def _engine_of(configuration: Mapping[str, object]) -> EngineFiles:
    model = configuration.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    engine = engine_for(str(configuration.get("task")), str(model_type))
    if engine is None:
        message = (
            f"{CONFIGURATION}: task {configuration.get('task')!r} with model.type {model_type!r} has no engine here"
        )
        raise ConversionRefused("ENGINE_UNKNOWN", message[:500])
    return engine


def _declared_names(folder: Path, engine: EngineFiles, configuration: Mapping[str, object]) -> list[str]:
    """The files that the engine takes, shards included, sorted."""
    listing = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    names = declared_files(engine, listing, configuration)
    for index in [name for name in names if name.endswith(_INDEX_SUFFIX)]:
        names += shards_of(_read_object(folder, index))
    for name in names:
        if Path(name).name != name or name not in listing:  # rule 1
            raise FilesMissing(f"{name[:80]!r} is named but is no file of the folder")
    return sorted(set(names))


def _read_object(folder: Path, name: str) -> dict[str, object]:
    try:
        row = json.loads(read_bounded(folder / name, MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        raise FilesMissing(f"the revision lacks {name}") from error
    except (ValueError, RecursionError) as error:
        raise ConversionRefused("CONFIG_BROKEN", f"{name} is no JSON: {type(error).__name__}") from error
    if not isinstance(row, dict):
        raise ConversionRefused("CONFIG_BROKEN", f"{name} holds no object")
    return row


def _run_child(source: Source, staging: Path, revision: str, limits: ConvertLimits, precision: str) -> None:
    memory = limits.memory_bytes or 3 * _GIB + 2 * source.size
    command = [sys.executable, "-P", "-m", "inference.runner.convert"]
    command += ["--source", str(source.folder.resolve()), "--into", str(staging.resolve())]
    command += ["--engine", source.engine.engine, "--revision", revision, "--precision", precision]
    command += ["--max-memory-bytes", str(memory), "--max-cpu-seconds", str(limits.cpu_seconds)]
    command += ["--max-file-bytes", str(limits.max_file_bytes)]
    # A plain environment: nothing that an operator exported reaches code that reads foreign bytes.
    environment = {**inherited_environment("PATH", "LD_LIBRARY_PATH", "TMPDIR"), "PYTHONPATH": str(_ROOT)}
    with tempfile.TemporaryFile() as sentences:
        try:
            done = subprocess.run(  # rule 2
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=sentences,
                timeout=limits.timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = f"the conversion took more than {limits.timeout_seconds:g} s"
            raise ConversionRefused("TIME_LIMIT", message) from error
        sentences.seek(max(0, sentences.tell() - _MAX_SENTENCE_BYTES))
        _check_ended(done.returncode, sentences.read())


def _check_ended(exit_code: int, stderr: bytes) -> None:
    """Raise what a child's end means, unless it ended well."""
    if exit_code == 0:
        return
    row: object = None
    if exit_code == REFUSED_EXIT_CODE:
        with contextlib.suppress(ValueError, IndexError):
            row = json.loads(stderr.decode("utf-8").splitlines()[-1])
    if not isinstance(row, dict):
        raise ConversionRefused("CONVERT_FAILED", f"the conversion ended with exit code {exit_code}")
    raise ConversionRefused(str(row.get("reason")), str(row.get("message")))
