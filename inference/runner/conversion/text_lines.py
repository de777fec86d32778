"""Reads the lines of a published text file, such as a vocabulary, as Python's text mode does. For every engine."""

from dataclasses import dataclass
from pathlib import Path

from common.durable import read_bounded
from common.file_kinds import HEAD_BYTES, identify_mistake
from common.source import ConversionRefused

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class TextLines:
    """The lines of a file, without their ends."""

    lines: tuple[str, ...]  # if the last one has an end, nothing follows it
    is_ended: bool  # whether the last line has an end
    notes: tuple[str, ...]


def read_lines(folder: Path, name: str, max_bytes: int) -> TextLines:
    """Read a text file; all three kinds of line ends are read alike.

    Raises:
        ConversionRefused: it is not UTF-8 text, or is larger than `max_bytes`.
        OSError: it cannot be read.
    """
    try:
        raw = read_bounded(folder / name, max_bytes)
    except ValueError as error:
        raise ConversionRefused("VOCABULARY_BROKEN", str(error), file=name) from error
    mistake = identify_mistake(raw[:HEAD_BYTES])
    if mistake:
        raise ConversionRefused("VOCABULARY_BROKEN", f"{name} {mistake}", file=name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"{name} is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}; save it as UTF-8"
        raise ConversionRefused("VOCABULARY_BROKEN", message, file=name) from error
    notes = []
    if "\r" in text:
        notes.append(f"{name}: its lines end with carriage returns (CRLF), which are not part of the words")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.startswith(_BYTE_ORDER_MARK):
        notes.append(f"{name}: it begins with a byte order mark")
    is_ended = text.endswith("\n")
    return TextLines(tuple(text.removesuffix("\n").split("\n")), is_ended, tuple(notes))
