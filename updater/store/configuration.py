"""What the keys of a revision's configuration may say. Number 11 of the list in `checks`. Pure.

What the engine does with a configuration is allow-listed once more, key by key, where it is converted: whatever it does
not know by name is never looked at. Here is refused what asks for more than that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from common.engine_files import CONFIGURATION

MAX_DEPTH = 32
# Of configuration.json, at its top: the sections of the format, what some repositories put there, and plain words.
SECTIONS = frozenset(
    {
        "framework",
        "task",
        "model",
        "pipeline",
        "preprocessor",
        "postprocessor",
        "dataset",
        "train",
        "evaluation",
        "answer2label",
        "language",
        "description",
        "license",
        "name",
        "version",
    }
)
# Of whoever trained it; full of folders of theirs, and never looked at.
UNREAD_SECTIONS = frozenset({"dataset", "train", "evaluation"})
CODE_KEYS = frozenset({"plugins", "allow_remote", "auto_map", "trust_remote_code", "custom_pipelines"})
# Where libraries write down what a model was saved from.
_NAME_KEYS = frozenset({"_name_or_path", "name_or_path"})


@dataclass(frozen=True, slots=True)
class KeyFault:
    """What is wrong with a configuration."""

    reason: str  # for machines, of check 11
    message: str  # for people


def fault_of_keys(row: Mapping[str, object], name: str, added: frozenset[str] = frozenset()) -> KeyFault | None:
    """Look at all keys and values of one configuration file.

    Args:
        row: its parsed content.
        name: of the file.
        added: sections of configuration.json that the operator knows, beside `SECTIONS`.

    Returns:
        The first thing that is wrong; None if nothing is.
    """
    if name == CONFIGURATION:
        unknown = sorted(set(row) - SECTIONS - CODE_KEYS - added)
        if unknown:
            return KeyFault("CONFIG_KEY_UNKNOWN", _unknown(unknown[0][:80], name))
    for key, value, depth, is_read in _walk(row, name):
        if depth > MAX_DEPTH:
            return KeyFault("CONFIG_BROKEN", f"{name} is nested deeper than {MAX_DEPTH}")
        if key in CODE_KEYS and value not in (None, False, [], {}):
            return KeyFault("CONFIG_ASKS_FOR_CODE", f"{name} has {key!r}, which asks for code of the repository")
        if is_read and key not in _NAME_KEYS and isinstance(value, str) and leads_out(value):
            return KeyFault("CONFIG_HAS_PATH", f"{name} has a path out of its folder under {key[:80]!r}")
    return None


def _unknown(key: str, name: str) -> str:
    known = ", ".join(sorted(SECTIONS))
    advice = "if it may stand there, add it to known_sections of [updater] and release the revision"
    return f"{name} has {key!r} at its top, known are {known}; {advice}"


def leads_out(text: str) -> bool:
    """Whether a value names a place outside of the revision's folder: an absolute path, one with `..`, an address."""
    parts = text.replace("\\", "/").split("/")
    is_absolute = len(parts) > 1 and parts[0] in ("", "~")
    has_drive = text[1:3] in (":\\", ":/")
    return is_absolute or has_drive or (len(parts) > 1 and ".." in parts) or text == ".." or "://" in text


def _walk(row: Mapping[str, object], name: str) -> Iterator[tuple[str, object, int, bool]]:
    for section, value in row.items():
        is_read = not (name == CONFIGURATION and section in UNREAD_SECTIONS)
        yield from ((key, inner, depth, is_read) for key, inner, depth in _below(value, 1, section))


def _below(value: object, depth: int, key: str) -> Iterator[tuple[str, object, int]]:
    yield key, value, depth
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _below(inner, depth + 1, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _below(inner, depth + 1, key)
