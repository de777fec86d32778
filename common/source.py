"""A published folder as a conversion sees it: its engine, its declared files, its digest; and what a refusal is.

The converting child imports this too, so it asks for nothing but the standard library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.bundle import bundle_digest, hash_file, source_digest
from common.durable import read_bounded
from common.engine_files import (
    CONFIGURATION,
    MAX_CONFIG_BYTES,
    EngineFiles,
    FilesMissing,
    declared_files,
    engine_for,
    shards_of,
)

PRECISIONS = ("float32", "bfloat16")
_INDEX_SUFFIX = ".index.json"


class ConversionRefused(ValueError):
    """A published folder cannot become a bundle.

    Attributes:
        reason: for machines, for example "CONFIG_UNSUPPORTED", "WEIGHTS_BROKEN", "TIME_LIMIT".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Source:
    """A published folder, looked at without torch."""

    folder: Path
    engine: EngineFiles
    names: tuple[str, ...]  # of the declared files, sorted
    size: int  # bytes of them all

    def digest(self) -> str:
        """Names what was published: every declared file is read and hashed.

        Raises:
            ConversionRefused: one cannot be read.
        """
        try:
            return source_digest([hash_file(self.folder / name) for name in self.names])
        except OSError as error:
            raise _unreadable(error) from error

    def bundle_digest(self, digest: str, precision: str) -> str:
        """Names what this source becomes, if `digest` is its own."""
        return bundle_digest(digest, self.engine.engine, self.engine.converter, precision)


def find_source(folder: Path) -> Source:
    """Find the engine of a published folder and the files that it declares; of these only the small ones are read.

    Raises:
        ConversionRefused: no engine of this build serves it, or files are missing.
    """
    try:
        configuration = _read_object(folder, CONFIGURATION)
        engine = _engine_of(configuration)
        names = _declared_names(folder, engine, configuration)
        size = sum((folder / name).stat().st_size for name in names)
    except FilesMissing as error:
        raise ConversionRefused("FILES_MISSING", str(error)) from error
    except OSError as error:
        raise _unreadable(error) from error
    return Source(folder, engine, tuple(names), size)


def _unreadable(error: OSError) -> ConversionRefused:
    return ConversionRefused("SOURCE_UNREADABLE", f"the folder cannot be read: {error.strerror}")


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
