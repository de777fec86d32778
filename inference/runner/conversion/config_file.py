"""Reads configuration files of published models: JSON objects whose keys are checked one by one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.durable import read_bounded
from common.engine_files import MAX_CONFIG_BYTES
from common.source import ConversionRefused

_MAX_SHOWN = 80  # characters of a foreign value in a message


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """One JSON object of a configuration file, with checked access to its keys."""

    location: str  # for messages, for example "configuration.json: model."
    values: Mapping[str, object]

    def get_count(self, key: str, default: int | None, lowest: int, highest: int) -> int:
        """Return an integer in a range; required if `default` is None."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"an integer from {lowest} to {highest}")
        return value

    def get_number(self, key: str, default: float, lowest: float, highest: float) -> float:
        """Return a number in a range."""
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
            self.refuse(key, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def get_flag(self, key: str, default: bool) -> bool:  # noqa: FBT001 - the flag is the value itself
        """Return a boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def get_choice(self, key: str, default: object, supported: Sequence[object]) -> object:
        """Return one of the supported values; types must match, so 1 is not true."""
        value = self.values.get(key, default)
        if not any(type(value) is type(one) and value == one for one in supported):
            self.refuse(key, value, ", ".join(json.dumps(one) for one in supported))
        return value

    def get_triple(self, key: str) -> tuple[float, float, float] | None:
        """Return three numbers, or None if the key is missing."""
        value = self.values.get(key)
        if value is None:
            return None
        numbers = [float(one) for one in value if isinstance(one, int | float)] if isinstance(value, list) else []
        if len(numbers) != 3:  # noqa: PLR2004 - a triple
            self.refuse(key, value, "three numbers")
        return numbers[0], numbers[1], numbers[2]

    def get_section(self, key: str) -> "ConfigSection":
        """Return the object under a key; empty if the key is missing."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, value, "an object")
        return ConfigSection(f"{self.location}{key}.", value)

    def refuse(self, key: str, value: object, supported: str) -> NoReturn:
        """Raise ConversionRefused with the value found and the supported values."""
        message = f"{self.location}{key} is {repr(value)[:_MAX_SHOWN]}, supported: {supported}"
        raise ConversionRefused("CONFIG_UNSUPPORTED", message)


def read_section(folder: Path, name: str) -> ConfigSection:
    """Read a configuration file.

    Raises:
        ConversionRefused: the file is not a JSON object or is larger than MAX_CONFIG_BYTES.
        OSError: the file cannot be read.
    """
    return ConfigSection(f"{name}: ", read_object(folder, name, MAX_CONFIG_BYTES))


def read_object(folder: Path, name: str, max_bytes: int) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ConversionRefused: the file is not a JSON object or is larger than `max_bytes`.
        OSError: the file cannot be read.
    """
    try:
        row = json.loads(read_bounded(folder / name, max_bytes))
    except (ValueError, RecursionError) as error:
        raise ConversionRefused("CONFIG_BROKEN", f"{name} is not JSON: {str(error)[:_MAX_SHOWN]}") from error
    if not isinstance(row, dict):
        raise ConversionRefused("CONFIG_BROKEN", f"{name} is not a JSON object")
    return row
