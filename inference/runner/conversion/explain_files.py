"""Explains the files of a published folder: which are used, ignored, refused, missing or were not looked at."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.durable import describe_odd_entry, open_regular
from common.engine_files import CONFIGURATION, ENGINES, MAX_CONFIG_BYTES, EngineFiles, find_engine, list_named_files
from common.explanation import ExplainedPart, Use
from common.file_kinds import HEAD_BYTES, identify_mistake
from common.source import ConversionRefused
from inference.runner.conversion.config_file import read_object
from inference.runner.conversion.refusals import DisagreementRefused
from inference.runner.conversion.stock_behaviour import describe_file

MAX_SHOWN_FILES = 200
_ARCHITECTURE = "config.json"
_FOLDER = "is a folder, not a file"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder."""

    name: str
    size: int = 0
    odd: str = ""  # what it is instead of a file that can be read, as the rest of a sentence
    mistake: str = ""  # what its content is instead of a part of a model, likewise


@dataclass(frozen=True, slots=True)
class FileNeeds:
    """The files that an engine needs of a folder."""

    engine: EngineFiles
    named: tuple[str, ...] = ()  # beside those of the engine


def list_entries(folder: Path) -> list[Entry]:
    """List a folder, sorted by name.

    Raises:
        OSError: the folder cannot be read.
    """
    return [_look_at(path) for path in sorted(folder.iterdir())]


def _look_at(path: Path) -> Entry:
    odd = describe_odd_entry(path)
    if odd:
        return Entry(path.name, odd=odd)
    try:
        with open_regular(path) as file:
            return Entry(path.name, path.stat().st_size, mistake=identify_mistake(file.read(HEAD_BYTES)))
    except PermissionError:
        what = f"cannot be read by this user (permission denied): chmod o+r {path.name}"
        return Entry(path.name, odd=what)
    except OSError as error:
        return Entry(path.name, odd=f"cannot be read: {error.strerror or error}")


def find_needs(folder: Path, entries: Sequence[Entry]) -> FileNeeds:
    """What is needed of a folder that no engine serves as it is: of the engine that it is most likely for."""
    configuration, architecture = (_read(folder, name) for name in (CONFIGURATION, _ARCHITECTURE))
    model = configuration.get("model")
    model_type = model.get("type") if isinstance(model, dict) else None
    engine = find_engine(str(configuration.get("task")), str(model_type)) or _guess(architecture, entries)
    return FileNeeds(engine, tuple(list_named_files(engine.named, configuration)))


def _guess(architecture: dict[str, object], entries: Sequence[Entry]) -> EngineFiles:
    """The engine that most of what is there speaks for."""
    there = {entry.name for entry in entries if not entry.odd}

    def count(engine: EngineFiles) -> int:
        says = architecture.get("model_type") in engine.architectures
        return 2 * says + any(there.issuperset(names) for names in engine.vocabulary) + len(there & {*engine.optional})

    return max(ENGINES, key=count)


def _read(folder: Path, name: str) -> dict[str, object]:
    try:
        return read_object(folder, name, MAX_CONFIG_BYTES)
    except (OSError, ConversionRefused):
        return {}


def explain_files(
    entries: Sequence[Entry], needs: FileNeeds, used: Collection[str], refusals: Sequence[ConversionRefused]
) -> list[ExplainedPart]:
    """Explain the files that are there, and those that are missing.

    Args:
        entries: of the folder.
        needs: of the engine.
        used: files that are read; empty if the import stops before it reads more than the configuration.
        refusals: of the import.
    """
    refused = {error.file for error in refusals}
    disagreeing = [error for error in refusals if isinstance(error, DisagreementRefused) and error.blames_keys]
    refused |= {location.partition(": ")[0] for error in disagreeing for location, _ in error.keys}
    said = " ".join(map(str, refusals))
    parts = [_explain_entry(entry, needs, used, refused, said) for entry in entries[:MAX_SHOWN_FILES]]
    return [*parts, *_list_missing([entry.name for entry in entries], needs)]


def _explain_entry(
    entry: Entry, needs: FileNeeds, used: Collection[str], refused: Collection[str], said: str
) -> ExplainedPart:
    engine, name = needs.engine, entry.name
    declared = name in used or name in (*engine.required, *engine.optional)
    alternative = name in engine.weights or any(name in names for names in engine.vocabulary) or name in needs.named
    stock = describe_file(engine.engine, name, is_used=declared or name in needs.named)
    if entry.odd:
        if f"{name} {entry.odd}" in said:
            return ExplainedPart("file", name, Use.REFUSED, f"{name} {entry.odd}", stock)
        shown = f"{name}/" if entry.odd == _FOLDER else name
        detail = {_FOLDER: "a folder"}.get(entry.odd, entry.odd.partition(" by this user")[0])
        return ExplainedPart("file", shown, Use.IGNORED, detail, stock)
    size = f"{entry.size} bytes"
    if entry.mistake and (declared or name in engine.weights):
        return ExplainedPart("file", name, Use.REFUSED, f"{name} {entry.mistake}", stock)
    if name in refused:
        return ExplainedPart("file", name, Use.REFUSED, f"{size}; see the reason above", stock)
    if not used and name != CONFIGURATION and (declared or alternative):
        return ExplainedPart("file", name, Use.UNREAD, size, stock)
    return ExplainedPart("file", name, Use.USED if declared else Use.IGNORED, size, stock)


def _list_missing(there: Iterable[str], needs: FileNeeds) -> list[ExplainedPart]:
    engine, names = needs.engine, set(there)
    missing = [name for name in engine.required if name not in names]
    missing += [engine.usual_weights] if names.isdisjoint(engine.weights) else []
    missing += [name for name in needs.named if name not in names and name not in engine.weights]
    if not any(names.issuperset(some) for some in engine.vocabulary):
        missing += [name for name in engine.vocabulary[0] if name not in names]
    return [
        ExplainedPart("file", name, Use.MISSING, "it is needed", describe_file(engine.engine, name, is_used=True))
        for name in missing
    ]
