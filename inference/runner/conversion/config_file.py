"""Reads configuration files of published models: JSON objects whose keys are checked one by one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from common.durable import read_bounded
from common.engine_files import MAX_CONFIG_BYTES
from common.json_text import find_duplicate_keys, parse_object
from common.source import ConversionRefused
from inference.runner.conversion.misspelt_keys import find_misspelt
from inference.runner.conversion.refusals import KeyName, KeyRefused
from inference.runner.conversion.trace import active_trace

_MAX_SHOWN = 80  # characters of a foreign value in a message


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """One JSON object of a configuration file, with checked access to its keys."""

    location: str  # for messages, for example "configuration.json: model."
    values: Mapping[str, object]
    read: set[str] = field(default_factory=set, compare=False)  # keys that were asked for
    aliases: Mapping[str, str] = field(default_factory=dict)  # other name of a key, which wins, by key
    duplicates: tuple[str, ...] = ()  # notes about keys that the file has several times

    def get(self, key: str, default: object = None) -> object:
        """Return a value; under its alias if there is one."""
        alias = self.aliases.get(key, "")
        found = alias if alias in self.values else key
        self.read.add(found)
        trace = active_trace()
        if trace is not None and (self.location, key) in trace.hidden:
            return default
        return self.values.get(found, default)

    def has(self, key: str) -> bool:
        """Whether a key or its alias is there."""
        return key in self.values or self.aliases.get(key, "") in self.values

    def get_count(self, key: str, default: int | None, lowest: int, highest: int) -> int:
        """Return an integer in a range; required if `default` is None."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"an integer from {lowest} to {highest}")
        return value

    def get_number(self, key: str, default: float, lowest: float, highest: float) -> float:
        """Return a number in a range."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def get_flag(self, key: str, default: bool) -> bool:  # noqa: FBT001 - the flag is the value itself
        """Return a boolean."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def get_choice(self, key: str, default: object, supported: Sequence[object]) -> object:
        """Return one of the supported values; types must match, so 1 is not true."""
        value = self.get(key, default)
        if not any(type(value) is type(one) and value == one for one in supported):
            self.refuse(key, value, ", ".join(json.dumps(one) for one in supported))
        return value

    def get_section(self, key: str) -> "ConfigSection":
        """Return the object under a key; empty if the key is missing."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, value, "an object")
        return _traced(ConfigSection(f"{self.location}{key}.", value))

    def refuse(self, key: str, value: object, supported: str, needs: Sequence[KeyName] = ()) -> NoReturn:
        """Raise KeyRefused with the value found and the supported values, which follow from the keys `needs`."""
        what = f"{self._say_value(key, value)}, supported: {supported}{self._hint(key)}"
        raise KeyRefused(self.location, key, what, needs)

    def name_of(self, key: str) -> str:
        """The name under which a key is there: its alias, if that is there."""
        alias = self.aliases.get(key, "")
        return alias if alias in self.values else key

    def get_size(
        self, key: str, attribute: str, value: object, *, extra: int = 0, named: Mapping[str, object] | None = None
    ) -> "SizeKey":
        """Return where a size of an architecture comes from: see SizeKey."""
        names = [name for name, one in (named or {}).items() if one == value]
        shown = self.get(key, names[0]) if names else value - extra if isinstance(value, int) else value
        others = {name: one for name, one in (named or {}).items() if one != value}
        sentence = f"{self.location}{self.name_of(key)} {self._say_value(key, shown)}{self._hint(key)}"
        return SizeKey(attribute, value, sentence, ((self.location, key),), others, extra)

    def describe_misspelt(self) -> tuple[str, ...]:
        """Notes about keys that are there several times, or are not read and resemble a key that is missing."""
        known = {*self.read, *self.aliases.values()}
        found = find_misspelt(self.values.keys() - known, known - self.values.keys())
        return self.duplicates + tuple(
            f"{self.location}{key[:_MAX_SHOWN]} is not read; did you mean {found[key]}, which is missing?"
            for key in sorted(found)
        )

    def _say_value(self, key: str, value: object) -> str:
        if self.has(key):
            return f"is {show_value(value)}"
        return "is missing" if value is None else f"is missing and counts as {show_value(value)}"

    def _hint(self, key: str) -> str:
        """The key that was meant by another one, if it is missing."""
        if self.has(key):
            return ""
        near = find_misspelt(self.values.keys() - self.read, (key,))
        return "".join(f" (is {other[:_MAX_SHOWN]} a misspelling of it?)" for other in list(near)[:1])


def show_value(value: object) -> str:
    """A value as it stands in the file, cut off if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


@dataclass(frozen=True, slots=True, eq=False)
class SizeKey:
    """One size of an architecture, and the key that it comes from."""

    attribute: str  # of the architecture
    value: Any
    sentence: str  # for example "config.json: d_model is 768"
    keys: tuple[KeyName, ...]
    named: Mapping[str, Any] = field(default_factory=dict)  # other values, if they have names
    extra: int = 0  # that the architecture's value is larger than the key's
    reason: str = "WEIGHTS_BROKEN"


def read_section(folder: Path, name: str, aliases: Mapping[str, str] | None = None) -> ConfigSection:
    """Read a configuration file.

    Args:
        folder: published.
        name: of the file.
        aliases: other name of a key, which wins, by key.

    Raises:
        ConversionRefused: the file is not a JSON object or is larger than MAX_CONFIG_BYTES.
        OSError: the file cannot be read.
    """
    values, duplicates = _read(folder, name, MAX_CONFIG_BYTES)
    return _traced(ConfigSection(f"{name}: ", values, aliases=aliases or {}, duplicates=duplicates))


def _traced(section: ConfigSection) -> ConfigSection:
    trace = active_trace()
    if trace is not None:
        trace.sections.append(section)
    return section


def read_object(folder: Path, name: str, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConversionRefused: the file is not a JSON object or is larger than `max_bytes`.
        OSError: the file cannot be read.
    """
    return _read(folder, name, max_bytes)[0]


def _read(folder: Path, name: str, max_bytes: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The object, and notes about keys that it has several times."""
    try:
        raw = read_bounded(folder / name, max_bytes)
        return parse_object(raw, name), find_duplicate_keys(raw, name)
    except ValueError as error:  # not JSON, or too large
        raise ConversionRefused("CONFIG_BROKEN", str(error), file=name) from error
