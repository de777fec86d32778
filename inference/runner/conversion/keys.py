"""Reading allow-listed keys of a foreign configuration; every refusal names file, key, value and what is supported."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.durable import read_bounded
from common.engine_files import MAX_CONFIG_BYTES
from common.source import ConversionRefused

_SHOWN = 80  # characters of a foreign value that a sentence repeats


@dataclass(frozen=True, slots=True)
class Keys:
    """One object of one configuration file."""

    place: str  # for sentences, for example "configuration.json: model."
    values: Mapping[str, object]

    def count(self, key: str, default: int | None, lowest: int, highest: int) -> int:
        """An integer in a range; required if there is no default."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"an integer from {lowest} to {highest}")
        return value

    def number(self, key: str, default: float, lowest: float, highest: float) -> float:
        """A number in a range."""
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:  # noqa: FBT001 - the flag is the value itself
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def choice(self, key: str, default: object, supported: Sequence[object]) -> object:
        """One of some values; 1 is no true."""
        value = self.values.get(key, default)
        if not any(type(value) is type(one) and value == one for one in supported):
            self.refuse(key, value, ", ".join(json.dumps(one) for one in supported))
        return value

    def triple(self, key: str) -> tuple[float, float, float] | None:
        """Three numbers, or None if the key is not there."""
        value = self.values.get(key)
        if value is None:
            return None
        numbers = [float(one) for one in value if isinstance(one, int | float)] if isinstance(value, list) else []
        if len(numbers) != 3:  # noqa: PLR2004 - a triple
            self.refuse(key, value, "three numbers")
        return numbers[0], numbers[1], numbers[2]

    def within(self, key: str) -> "Keys":
        """The object under a key; empty if it is not there."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, value, "an object")
        return Keys(f"{self.place}{key}.", value)

    def refuse(self, key: str, value: object, supported: str) -> NoReturn:
        """Say what was found and what would do."""
        message = f"{self.place}{key} is {repr(value)[:_SHOWN]}, supported: {supported}"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)


def read_keys(folder: Path, name: str) -> Keys:
    """Read a configuration file.

    Raises:
        ConversionRefused: it is no JSON object of a sensible size.
        OSError: it cannot be read.
    """
    return Keys(f"{name}: ", read_object(folder, name, MAX_CONFIG_BYTES))


def read_object(folder: Path, name: str, max_bytes: int) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ConversionRefused: it is none, or larger than `max_bytes`.
        OSError: it cannot be read.
    """
    try:
        row = json.loads(read_bounded(folder / name, max_bytes))
    except (ValueError, RecursionError) as error:
        raise ConversionRefused("CONFIG_BROKEN", f"{name} is no JSON: {str(error)[:_SHOWN]}") from error
    if not isinstance(row, dict):
        raise ConversionRefused("CONFIG_BROKEN", f"{name} holds no object")
    return row
