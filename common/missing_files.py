"""Says where files may be that a published folder lacks: under another name, in a folder below, not downloaded."""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from common.durable import describe_odd_entry, read_bounded
from common.engine_files import CONFIGURATION, ENGINES, MAX_CONFIG_BYTES, EngineFiles, describe_near_name
from common.json_text import parse_object

_ARCHITECTURE = "config.json"
_PARTIAL = "._____temp"  # of ModelScope's downloads
_MAX_SHOWN = 5  # folders in a sentence


def describe_missing(folder: Path, message: str, engine: EngineFiles | None) -> str:
    """The sentence about files that a folder lacks, with what else explains it.

    Args:
        folder: published.
        message: which files it lacks.
        engine: by configuration.json; None if that is missing.

    Raises:
        OSError: the folder cannot be read.
    """
    paths = sorted(folder.iterdir())
    if not paths:
        return "the folder is empty: download the model into it"
    odd = _describe_odd(paths, message)
    if odd:
        return odd
    if any(path.name == _PARTIAL for path in paths):
        return f"{message}; {_PARTIAL} means that the download was not finished: download it again"
    if engine is None:
        return f"{message}{_hint_at_configuration(paths)}"
    other = _find_other(folder, engine)
    if other:
        return f"{other} ({message})"
    return f"{message}{_hint_at_inner(paths)}"


def describe_odd_files(folder: Path, message: str) -> str:
    """Sentences about names in a message under which the folder has something other than a file."""
    return _describe_odd(sorted(folder.iterdir()), message)


def _describe_odd(paths: Collection[Path], message: str) -> str:
    names = set(re.split(r"[ ,()':]+", message))
    odd = {path.name: describe_odd_entry(path) for path in paths if path.name in names}
    return "; ".join(f"{name} {what}" for name, what in odd.items() if what)


def _hint_at_configuration(paths: Collection[Path]) -> str:
    near = describe_near_name(CONFIGURATION, [path.name for path in paths])
    return near or _hint_at_inner(paths, 1) or ", in which ModelScope's trainers write task, model.type and answers"


def _hint_at_inner(paths: Collection[Path], files: int = 2) -> str:
    """Folders below that have the first `files` configuration files."""
    needed = (CONFIGURATION, _ARCHITECTURE)[:files]
    inner = [path.name for path in paths if all((path / name).is_file() for name in needed)]
    if not inner:
        return ""
    shown = ", ".join(repr(name[:80]) for name in inner[:_MAX_SHOWN])
    more = f" and {len(inner) - _MAX_SHOWN} more" if len(inner) > _MAX_SHOWN else ""
    is_one = len(inner) == 1
    what = "it is" if files == 1 else "another model is" if is_one else "other models are"
    return f"; {what} in the folder{'' if is_one else 's'} {shown}{more}: use {'that one' if is_one else 'one of them'}"


def _find_other(folder: Path, engine: EngineFiles) -> str:
    """A question if config.json is of another engine than configuration.json says."""
    with contextlib.suppress(OSError, ValueError):
        row = parse_object(read_bounded(folder / _ARCHITECTURE, MAX_CONFIG_BYTES), _ARCHITECTURE)
        found = row.get("model_type")
        others = [one for one in ENGINES if found in one.architectures and one is not engine]
        if others and found not in engine.architectures:
            says = f"{CONFIGURATION} says {engine.task} with {engine.model_types[0]}"
            return f"{says}, but {_ARCHITECTURE} says model_type {found!r}: is it another model's {CONFIGURATION}?"
    return ""
