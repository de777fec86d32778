"""Explains a published folder: what this build would use, ignore and refuse, and what the stock pipeline does.

A plan of the folder is made again and again, each time without the key that was refused, so that all refusals are found
at once.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from common.engine_files import CONFIGURATION, ENGINES, MAX_CONFIG_BYTES, EngineFiles, list_named_files
from common.explanation import ExplainedPart, Explanation, Use
from common.file_kinds import HEAD_BYTES, identify_mistake
from common.source import ConversionRefused, find_source
from inference.runner.conversion.config_file import read_object
from inference.runner.conversion.misspelt_keys import find_misspelt
from inference.runner.conversion.pickle_file import check_records
from inference.runner.conversion.refusals import DisagreementRefused, KeyRefused, refusing
from inference.runner.conversion.state_dict import group_names
from inference.runner.conversion.stock_behaviour import describe_file, describe_key
from inference.runner.conversion.tensor_content import find_bad_tensors
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
        parts = _explain_files(folder, _guess_engine(folder), (), [error])
        return Explanation("", tuple(parts), (), (str(error), *_say_others(parts, [str(error)])))
    trace, refusals, notes = _collect_refusals(folder, planners[source.engine.engine])
    bad: dict[str, str] = {}
    if trace.located and not refusals:
        bad = _check_content(trace.located[-1], refusals)
    parts = _explain_files(folder, source.engine, source.names, refusals)
    sentences = [str(error) for error in refusals]
    sentences += _say_others(parts, sentences)
    parts += _explain_keys(source.engine, trace, refusals)
    missing = not trace.hidden  # else they may follow from a default
    parts += [
        part
        for located in trace.located
        for part in _explain_tensors(located, bad)
        if missing or part.use is not Use.MISSING
    ]
    return Explanation(source.engine.engine, tuple(parts), tuple(notes), tuple(sentences))


def _say_others(parts: Iterable[ExplainedPart], said: Sequence[str]) -> list[str]:
    """Sentences about files that are something else and that no other sentence names."""
    refused = [part for part in parts if part.use is Use.REFUSED and part.detail.startswith(part.name)]
    return [part.detail for part in refused if not any(part.name in sentence for sentence in said)]


def _collect_refusals(folder: Path, planner: Planner) -> tuple[Trace, list[ConversionRefused], Sequence[str]]:
    """Plan again and again, each time without the key that was refused; the last trace, and the plan's notes.

    What follows only from the default of such a key is no refusal of its own.
    """
    trace, refusals = Trace(), list[ConversionRefused]()
    for _ in range(MAX_REFUSALS):
        trace = Trace(trace.hidden)
        with record(trace):
            try:
                return trace, refusals, getattr(planner(folder), "notes", ())
            except KeyRefused as error:
                if (error.location, error.key) in trace.hidden:  # now its default does not fit the other keys
                    return trace, refusals, ()
                if trace.hidden.isdisjoint(error.needs):
                    refusals.append(error)
                trace.hidden |= {(error.location, error.key)}
            except DisagreementRefused as error:
                if trace.hidden.isdisjoint(error.keys):
                    refusals.append(error)
                return trace, refusals, ()
            except ConversionRefused as error:
                refusals.append(error)
                return trace, refusals, ()
    return trace, refusals, ()


def _check_content(located: TracedTensors, refusals: list[ConversionRefused]) -> dict[str, str]:
    """Read all weights; add what is wrong with them, and return the problems by tensor."""
    try:
        with refusing(located.file):
            check_records(location.path for location in located.locations.values())
    except ConversionRefused as error:
        refusals.append(error)
        return {}
    bad = find_bad_tensors(located.locations)
    refusals += [_refuse_numbers(bad, located.file)] if bad else []
    return bad


def _refuse_numbers(bad: Mapping[str, str], file: str) -> ConversionRefused:
    """One refusal for all tensors with bad numbers."""
    name, problem = next(iter(bad.items()))
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return ConversionRefused(
        "WEIGHTS_BROKEN", f"{file}: tensor {name} {problem}{more}, supported: finite numbers", file=file
    )


def _guess_engine(folder: Path) -> EngineFiles:
    """The engine for the sentences about a folder that no engine serves."""
    there = {path.name for path in folder.iterdir()}
    complete = (engine for engine in ENGINES if any(there.issuperset(names) for names in engine.vocabulary))
    return next(complete, ENGINES[0])


def _explain_files(
    folder: Path, engine: EngineFiles, names: Iterable[str], refusals: Sequence[ConversionRefused]
) -> list[ExplainedPart]:
    """Files that are there, and those that are missing."""
    used = set(names)
    refused = {error.file for error in refusals}
    disagreeing = [error for error in refusals if isinstance(error, DisagreementRefused) and error.blames_keys]
    refused |= {location.partition(": ")[0] for error in disagreeing for location, _ in error.keys}
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
        elif path.name in refused:
            parts.append(ExplainedPart("file", path.name, Use.REFUSED, f"{size}; see the reason below", stock))
        else:
            parts.append(ExplainedPart("file", path.name, Use.USED if declared else Use.IGNORED, size, stock))
    there = {path.name for path in folder.iterdir() if path.is_file()}
    missing = [name for name in engine.required if name not in there]
    missing += [engine.usual_weights] if there.isdisjoint(engine.weights) else []
    missing += [name for name in _list_named(folder, engine) if name not in there]
    if not any(there.issuperset(names) for names in engine.vocabulary):
        missing += [name for name in engine.vocabulary[0] if name not in there]
    return parts + [
        ExplainedPart("file", name, Use.MISSING, "it is needed", describe_file(engine.engine, name, is_used=True))
        for name in missing
    ]


def _list_named(folder: Path, engine: EngineFiles) -> list[str]:
    """Files that the configuration names, if it can be read."""
    try:
        return list_named_files(engine.named, read_object(folder, CONFIGURATION, MAX_CONFIG_BYTES))
    except (OSError, ConversionRefused):
        return []


def _explain_keys(engine: EngineFiles, trace: Trace, refusals: Iterable[ConversionRefused]) -> list[ExplainedPart]:
    """Keys of all configuration files that were opened; a section that is read key by key is not a key itself."""
    sections: dict[str, TracedSection] = {}
    for section in trace.sections:
        known = sections.setdefault(section.location, section)
        known.read.update(section.read)
    reasons = {(error.location, error.key): str(error) for error in refusals if isinstance(error, KeyRefused)}
    disagreeing = [error for error in refusals if isinstance(error, DisagreementRefused) and error.blames_keys]
    reasons |= {key: str(error) for error in disagreeing for key in error.keys}
    parts = []
    for location, section in sections.items():
        asked = {*section.read, *section.aliases.values()}
        misspelt = find_misspelt(section.values.keys() - asked, asked - section.values.keys())
        for key, value in section.values.items():
            if f"{location}{key}." in sections:
                continue
            use = Use.USED if key in section.read and not _is_overruled(section, key) else Use.IGNORED
            use = Use.REFUSED if (location, key) in reasons else use
            near = f"; did you mean {misspelt[key]}?" if key in misspelt else ""
            detail = reasons.get((location, key), json.dumps(value, ensure_ascii=False)[:_MAX_SHOWN] + near)
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


def _explain_tensors(located: TracedTensors, bad: Mapping[str, str]) -> list[ExplainedPart]:
    loads = "loads them"
    parts = []
    for name, names in group_names(located.locations).items():
        kinds = sorted({located.locations[one].dtype for one in names})
        problem = next((f": {one} {bad[one]}" for one in names if one in bad), "")
        use = Use.REFUSED if problem else Use.USED
        parts.append(ExplainedPart("tensors", name, use, f"{len(names)}, {', '.join(kinds)}{problem}", loads))
    for name, names in group_names(located.missing).items():
        parts.append(ExplainedPart("tensors", name, Use.MISSING, f"{len(names)}", "starts with random values for them"))
    for name, names in group_names(located.surplus).items():
        parts.append(ExplainedPart("tensors", name, Use.IGNORED, f"{len(names)}", "ignores them"))
    return parts
