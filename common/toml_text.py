"""Reads TOML files that people write; the message says where the mistake is, or why the file cannot be read."""

import tomllib
from pathlib import Path
from typing import Any

from common.durable import NotRegular, describe_odd_entry, read_bounded

MAX_FILE_BYTES = 8 << 20
_MAX_SHOWN = 160  # characters of a message
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class TomlBroken(ValueError):
    """The file cannot be read or is not TOML; the message is the rest of a sentence that begins with its name."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        TomlBroken: it cannot be read, has more than MAX_FILE_BYTES, or is not TOML.
    """
    try:
        raw = read_bounded(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise TomlBroken("no such file") from error
    except NotRegular as error:
        raise TomlBroken(f"{describe_odd_entry(path) or 'is no regular file'}; name a TOML file") from error
    except PermissionError as error:
        raise TomlBroken("this user may not read it; give it read permission on the file and its folders") from error
    except OSError as error:
        raise TomlBroken(f"cannot be read: {(error.strerror or str(error)).lower()}; name another file") from error
    except ValueError as error:
        raise TomlBroken(f"has more than {MAX_FILE_BYTES} bytes; name a settings file") from error
    return parse_toml(raw)


def parse_toml(raw: bytes) -> dict[str, Any]:
    """Parse TOML: UTF-8, with or without a byte order mark.

    Raises:
        TomlBroken: it is not TOML.
    """
    if raw.startswith(_UTF16_MARKS):
        raise TomlBroken("is UTF-16; save it as UTF-8")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TomlBroken(f"not UTF-8: byte 0x{raw[error.start]:02x} in line {line}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise TomlBroken(f"not TOML: {shorten(str(error), _MAX_SHOWN)}") from error
    except RecursionError as error:
        raise TomlBroken("not TOML of settings: its brackets are nested too deeply; remove them") from error
    except ValueError as error:  # of int(): more than 4300 digits
        raise TomlBroken("has a number with thousands of digits; write a smaller one") from error


def shorten(text: str, max_chars: int) -> str:
    """The text, cut after `max_chars` characters with a mark that more follow."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"
