"""Which of a revision's files are taken: only what the engine of its configuration declares."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.engine_files import CONFIGURATION, EngineFiles, FilesMissing, declared_files, engine_for, shards_of

INDEX_SUFFIX = ".index.json"


class NotServable(ValueError):
    """No engine of this build serves a revision, or it lacks files; it will not get better by waiting.

    Attributes:
        reason: for machines.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Declared:
    """What an engine takes of a revision."""

    engine: EngineFiles
    names: tuple[str, ...]  # sorted


def declared(sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Declared:
    """Find the engine of a revision, and the files that it takes.

    Args:
        sizes: size of every listed file by its name.
        read: content of a small file of the revision; may raise what it likes.

    Raises:
        NotServable: it cannot be served by this build.
    """
    if CONFIGURATION not in sizes:
        raise NotServable("FILES_MISSING", f"the revision lacks {CONFIGURATION}")
    configuration = parse_object(read(CONFIGURATION), CONFIGURATION)
    engine = engine_of(configuration)
    try:
        names = declared_files(engine, sizes, configuration)
        for index in [name for name in names if name.endswith(INDEX_SUFFIX)]:
            names += shards_of(parse_object(read(index), index))
    except FilesMissing as error:
        raise NotServable("FILES_MISSING", str(error)) from error
    missing = [name for name in names if name not in sizes]
    if missing:
        raise NotServable("FILES_MISSING", f"the revision lacks {missing[0][:80]!r}")
    nested = [name for name in names if "/" in name]
    if nested:
        raise NotServable("UNSAFE_NAME", f"{nested[0][:80]!r} is named, and only plain names are taken")
    return Declared(engine, tuple(sorted(set(names))))


def engine_of(configuration: Mapping[str, Any]) -> EngineFiles:
    """The engine that serves a configuration's task and model type.

    Raises:
        NotServable: this build has none.
    """
    model = configuration.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    task = configuration.get("task")
    engine = engine_for(str(task), str(model_type))
    if engine is None:
        sentence = f"{CONFIGURATION}: task {str(task)[:80]!r}, model.type {str(model_type)[:80]!r} has no engine here"
        raise NotServable("ENGINE_UNKNOWN", sentence)
    return engine


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        NotServable: it is none.
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise NotServable("CONFIG_BROKEN", f"{name} is no JSON") from error
    if not isinstance(row, dict):
        raise NotServable("CONFIG_BROKEN", f"{name} holds no object")
    return row
