"""Explains a published folder: what this build would use, ignore and refuse, and what the stock pipeline does.

A plan of the folder is made again and again, each time without the key that was refused, so that all refusals are found
at once.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from common.engine_files import EngineFiles
from common.explanation import ExplainedPart, Explanation, Use
from common.source import ConversionRefused, find_source, refuse_unreadable
from inference.runner.conversion.explain_files import FileNeeds, explain_files, find_needs, list_entries
from inference.runner.conversion.misspelt_keys import find_misspelt
from inference.runner.conversion.pickle_file import check_records
from inference.runner.conversion.refusals import DisagreementRefused, KeyRefused, refusing
from inference.runner.conversion.state_dict import group_names
from inference.runner.conversion.stock_behaviour import describe_key
from inference.runner.conversion.tensor_content import describe_bad_tensor, find_bad_tensors
from inference.runner.conversion.tensor_location import TensorLocations
from inference.runner.conversion.trace import Trace, TracedSection, TracedTensors, record

MAX_REFUSALS = 20
MAX_KEYS = 400
_MAX_SHOWN = 60  # characters of a value


class Plan(Protocol):
    """The parts of a conversion plan that an explanation shows."""

    @property
    def notes(self) -> tuple[str, ...]:
        """For display."""
        ...

    @property
    def locations(self) -> TensorLocations:
        """The tensors that a conversion reads."""
        ...


Planner = Callable[[Path], Plan]  # raises ConversionRefused


def explain_folder(folder: Path, planners: Mapping[str, Planner]) -> Explanation:
    """Explain a folder.

    Args:
        folder: published.
        planners: by engine, the functions that make a plan.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        entries = list_entries(folder)
        source = find_source(folder)
    except OSError as error:  # from the listing
        return Explanation("", (), (), (str(refuse_unreadable(error, folder)),), is_complete=False)
    except ConversionRefused as error:
        parts = explain_files(entries, find_needs(folder, entries), (), [error])
        sentences = [str(error), *_say_others(parts, [str(error)])]
        return _printable(Explanation("", tuple(parts), (), tuple(sentences), is_complete=False))
    trace, refusals, plan = _collect_refusals(folder, planners[source.engine.engine])
    bad: dict[str, str] = {}
    is_complete = False
    if plan is not None and not refusals:
        bad, is_complete = _check_content(folder, trace.located[-1].file, plan.locations, refusals), True
    parts = explain_files(entries, FileNeeds(source.engine, source.names), source.names, refusals)
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
    duplicates = dict.fromkeys(note for section in trace.sections for note in section.duplicates)
    notes = tuple(duplicates) if plan is None else tuple(plan.notes)
    engine = source.engine.engine
    return _printable(Explanation(engine, tuple(parts), notes, tuple(sentences), is_complete=is_complete))


def _printable(found: Explanation) -> Explanation:
    """The same; bytes of names of files that are not UTF-8 are written in hexadecimal."""
    return replace(
        found,
        parts=tuple(replace(part, name=_decode(part.name), detail=_decode(part.detail)) for part in found.parts),
        notes=tuple(map(_decode, found.notes)),
        refusals=tuple(map(_decode, found.refusals)),
    )


def _decode(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _say_others(parts: Iterable[ExplainedPart], said: Sequence[str]) -> list[str]:
    """Sentences about files that are something else and that no other sentence names."""
    refused = [part for part in parts if part.use is Use.REFUSED and part.detail.startswith(part.name)]
    return [part.detail for part in refused if not any(part.name in sentence for sentence in said)]


def _collect_refusals(folder: Path, planner: Planner) -> tuple[Trace, list[ConversionRefused], Plan | None]:
    """Plan again and again, each time without the key that was refused; the last trace, and the plan.

    What follows only from the default of such a key is no refusal of its own.
    """
    trace, refusals = Trace(), list[ConversionRefused]()
    for _ in range(MAX_REFUSALS):
        trace = Trace(trace.hidden)
        with record(trace):
            try:
                return trace, refusals, planner(folder)
            except KeyRefused as error:
                if (error.location, error.key) in trace.hidden:  # now its default does not fit the other keys
                    return trace, refusals, None
                if trace.hidden.isdisjoint(error.needs):
                    refusals.append(error)
                trace.hidden |= {(error.location, error.key)}
            except DisagreementRefused as error:
                if trace.hidden.isdisjoint(error.keys):
                    refusals.append(error)
                return trace, refusals, None
            except OSError as error:
                refusals.append(refuse_unreadable(error, folder))
                return trace, refusals, None
            except ConversionRefused as error:
                refusals.append(error)
                return trace, refusals, None
    return trace, refusals, None


def _check_content(
    folder: Path, file: str, locations: TensorLocations, refusals: list[ConversionRefused]
) -> dict[str, str]:
    """Read all weights that a conversion reads; add what is wrong with them, and return the problems by tensor."""
    try:
        with refusing(file):
            check_records(location.path for location in locations.values())
        bad = find_bad_tensors(locations)
    except OSError as error:
        refusals.append(refuse_unreadable(error, folder))
        return {}
    except ConversionRefused as error:
        refusals.append(error)
        return {}
    if bad:
        name, problem = next(iter(bad.items()))
        message = describe_bad_tensor(locations[name].path.name, name, problem, len(bad) - 1)
        refusals.append(ConversionRefused("WEIGHTS_BROKEN", message, file=file))
    return bad


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
    """Whether the section has the key under its other name too, whose value is used."""
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
