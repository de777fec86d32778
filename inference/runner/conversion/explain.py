"""Explains a published folder: what this build would use, ignore and refuse, and what the stock pipeline does.

A plan of the folder is made again and again, each time without the key that was refused, so that all refusals are found
at once.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from common.engine_files import ENGINES, EngineFiles
from common.explanation import ExplainedPart, Explanation, Use
from common.file_kinds import HEAD_BYTES, identify_mistake
from common.source import ConversionRefused, find_source
from inference.runner.conversion.config_file import KeyRefused
from inference.runner.conversion.state_dict import group_names
from inference.runner.conversion.stock_behaviour import describe_file, describe_key
from inference.runner.conversion.trace import Trace, TracedSection, TracedTensors, record

MAX_REFUSALS = 20
MAX_FILES = 200
MAX_KEYS = 400
_MAX_SHOWN = 60  # characters of a value

Planner = Callable[[Path], object]  # returns a plan with `notes`; raises ConversionRefused


def explain_folder(folder: Path, planners: Mapping[str, Planner]) -> Explanation:
    """Explain a folder.

    Args:
        folder: published.
        planners: by engine, the functions that make a plan.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        source = find_source(folder)
    except ConversionRefused as error:
        parts = _explain_files(folder, _guess_engine(folder), ())
        return Explanation("", tuple(parts), (), (str(error),))
    trace, notes = Trace(), ()
    refusals: list[ConversionRefused] = []
    for _ in range(MAX_REFUSALS):
        trace = Trace(trace.hidden)
        with record(trace):
            try:
                notes = getattr(planners[source.engine.engine](folder), "notes", ())
                break
            except KeyRefused as error:
                if (error.location, error.key) in trace.hidden:  # now its default does not fit the other keys
                    break
                refusals.append(error)
                trace.hidden |= {(error.location, error.key)}
            except ConversionRefused as error:
                refusals.append(error)
                break
    parts = _explain_files(folder, source.engine, source.names)
    parts += _explain_keys(source.engine, trace, [error for error in refusals if isinstance(error, KeyRefused)])
    parts += [part for located in trace.located for part in _explain_tensors(located)]
    return Explanation(source.engine.engine, tuple(parts), tuple(notes), tuple(str(error) for error in refusals))


def _guess_engine(folder: Path) -> EngineFiles:
    """The engine for the sentences about a folder that no engine serves."""
    named = "vocab.txt" if (folder / "vocab.txt").is_file() and not (folder / "merges.txt").is_file() else "merges.txt"
    return next(engine for engine in ENGINES if any(named in names for names in engine.vocabulary))


def _explain_files(folder: Path, engine: EngineFiles, names: Iterable[str]) -> list[ExplainedPart]:
    """Files that are there, and those that are missing."""
    used = set(names)
    parts = []
    for path in sorted(folder.iterdir())[:MAX_FILES]:
        declared = path.name in used or path.name in (*engine.required, *engine.optional)
        stock = describe_file(engine.engine, path.name, is_used=declared)
        if not path.is_file():
            parts.append(ExplainedPart("file", f"{path.name}/", Use.IGNORED, "a folder", stock))
            continue
        with path.open("rb") as file:
            mistake = identify_mistake(file.read(HEAD_BYTES))
        size = f"{path.stat().st_size} bytes"
        if mistake and (declared or path.name in engine.weights):
            parts.append(ExplainedPart("file", path.name, Use.REFUSED, f"{path.name} {mistake}", stock))
        else:
            parts.append(ExplainedPart("file", path.name, Use.USED if declared else Use.IGNORED, size, stock))
    missing = [name for name in engine.required if not (folder / name).is_file()]
    return parts + [
        ExplainedPart("file", name, Use.MISSING, "it is needed", describe_file(engine.engine, name, is_used=True))
        for name in missing
    ]


def _explain_keys(engine: EngineFiles, trace: Trace, refused: list[KeyRefused]) -> list[ExplainedPart]:
    """Keys of all configuration files that were opened; a section that is read key by key is not a key itself."""
    sections: dict[str, TracedSection] = {}
    for section in trace.sections:
        known = sections.setdefault(section.location, section)
        known.read.update(section.read)
    reasons = {(error.location, error.key): str(error) for error in refused}
    parts = []
    for location, section in sections.items():
        for key, value in section.values.items():
            if f"{location}{key}." in sections:
                continue
            use = Use.USED if key in section.read and not _is_overruled(section, key) else Use.IGNORED
            use = Use.REFUSED if (location, key) in reasons else use
            detail = reasons.get((location, key), json.dumps(value, ensure_ascii=False)[:_MAX_SHOWN])
            stock = describe_key(engine.engine, f"{location}{key}", is_used=use is not Use.IGNORED)
            parts.append(ExplainedPart("key", f"{location}{key}", use, detail, stock))
        for (where, key), reason in reasons.items():
            if where == location and key not in section.values:
                stock = describe_key(engine.engine, f"{location}{key}", is_used=True)
                parts.append(ExplainedPart("key", f"{location}{key}", Use.MISSING, reason, stock))
    return parts[:MAX_KEYS]


def _is_overruled(section: TracedSection, key: str) -> bool:
    """Whether another name of the key is there, which wins."""
    return section.aliases.get(key, "") in section.values


def _explain_tensors(located: TracedTensors) -> list[ExplainedPart]:
    loads = "loads them"
    parts = []
    for name, names in group_names(located.locations).items():
        kinds = sorted({located.locations[one].dtype for one in names})
        parts.append(ExplainedPart("tensors", name, Use.USED, f"{len(names)}, {', '.join(kinds)}", loads))
    for name, names in group_names(located.missing).items():
        parts.append(ExplainedPart("tensors", name, Use.MISSING, f"{len(names)}", "starts with random values for them"))
    for name, names in group_names(located.surplus).items():
        parts.append(ExplainedPart("tensors", name, Use.IGNORED, f"{len(names)}", "ignores them"))
    return parts
