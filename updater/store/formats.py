"""Of which format a file is, by its ending and by its content. Numbers 9 and 10 of the list in `checks`."""

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

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


HEAD_BYTES = 16
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 8 << 20  # of a safetensors file
MAX_TEXT_BYTES = 64 << 20
_LENGTH_BYTES = 8  # little-endian, before a safetensors header
_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")
_TENSOR_ARCHIVES = (b"PK\x03\x04", b"\x80")  # a zip, a pickle of protocol 2 or later
# Programs, libraries, scripts and byte code, by the bytes that they begin with.
_PROGRAMS = (
    b"\x7fELF",
    b"#!",
    b"MZ",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\0asm",
    b"!<arch>\n",
)


def is_executable(head: bytes) -> bool:
    """Whether a file that begins so could be run.

    Args:
        head: its first HEAD_BYTES bytes.
    """
    return head.startswith(_PROGRAMS)


def is_of_its_format(name: str, size: int, file: BinaryIO) -> str:
    """Look whether a file is what its ending says.

    Args:
        name: plain.
        size: of the whole file, bytes.
        file: at its beginning.

    Returns:
        What is wrong, for people; empty if nothing is.

    Raises:
        OSError: it cannot be read.
    """
    suffix = PurePosixPath(name).suffix
    if suffix not in _SUFFIXES:
        return f"{name} is of no format that is taken ({', '.join(_SUFFIXES)})"
    if suffix == ".safetensors":
        return _fault_of_safetensors(name, size, file)
    if suffix == ".bin":
        return "" if file.read(HEAD_BYTES).startswith(_TENSOR_ARCHIVES) else f"{name} is no archive of tensors"
    return _fault_of_text(name, size, file, is_json=suffix == ".json")


def _fault_of_safetensors(name: str, size: int, file: BinaryIO) -> str:
    """A length, then so many bytes of a JSON object, then numbers."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):  # noqa: PLR2004  "{}"
        return f"{name} is no safetensors: it does not begin with the length of a header"
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        header = None
    return "" if isinstance(header, dict) else f"{name} is no safetensors: its header is no JSON object"


def _fault_of_text(name: str, size: int, file: BinaryIO, *, is_json: bool) -> str:
    """UTF-8 without NUL; an object or a list, if it is JSON."""
    if size > MAX_TEXT_BYTES:
        return f"{name} has {size} bytes, texts have at most {MAX_TEXT_BYTES}"
    decoder, begins = codecs.getincrementaldecoder("utf-8")(), b""
    try:
        for chunk in _chunks(file):
            begins = begins or chunk.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
            if b"\0" in chunk:
                return f"{name} is no text: it holds NUL"
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return f"{name} is no text in UTF-8"
    if is_json and begins not in (b"{", b"["):
        return f"{name} is no JSON: it does not begin as an object or a list"
    return ""


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
