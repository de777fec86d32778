"""Content checks of single files: allow-listed formats (9, 10) and configuration keys (11)."""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from common.engine_files import CONFIGURATION, SECTIONS
from common.file_kinds import HEAD_BYTES as MISTAKE_BYTES
from common.file_kinds import identify_mistake
from common.json_load import load_json

MAX_DEPTH = 32
# Written by training; never read here, and full of paths of the training machine.
_UNREAD_SECTIONS = frozenset({"dataset", "train", "evaluation", "description"})
CODE_KEYS = frozenset({"plugins", "allow_remote", "auto_map", "trust_remote_code", "custom_pipelines"})
_READ_SECTIONS = (SECTIONS - _UNREAD_SECTIONS) | CODE_KEYS
# Libraries record here where a model was saved from; nothing reads it.
_NAME_KEYS = frozenset({"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file"})


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """Why a configuration is refused."""

    reason: str  # for machines; one of check 11
    message: str  # for people


def find_config_problem(row: Mapping[str, object], name: str) -> ConfigProblem | None:
    """Check all keys and values of one configuration file.

    Args:
        row: parsed content.
        name: of the file.

    Returns:
        The first problem; None if there is none.
    """
    for key, value, depth, is_read in _walk(row, name):
        if depth > MAX_DEPTH:
            return ConfigProblem("CONFIG_BROKEN", f"{name} is nested deeper than {MAX_DEPTH}")
        if is_read and key in CODE_KEYS and value not in (None, False, [], {}):
            return ConfigProblem("CONFIG_ASKS_FOR_CODE", f"{name} has {key!r}, which would run code of the repository")
        if is_read and key not in _NAME_KEYS and isinstance(value, str) and leaves_folder(value):
            return ConfigProblem(
                "CONFIG_HAS_PATH", f"{name} has a path that leaves the revision's folder at {key[:80]!r}"
            )
    return None


def leaves_folder(text: str) -> bool:
    """Whether a value points outside of the revision's folder: an absolute path, a path with `..`, or a URL."""
    parts = text.replace("\\", "/").split("/")
    is_absolute = len(parts) > 1 and parts[0] in ("", "~")
    has_drive = text[1:3] in (":\\", ":/")
    return is_absolute or has_drive or (len(parts) > 1 and ".." in parts) or text == ".." or "://" in text


def _walk(row: Mapping[str, object], name: str) -> Iterator[tuple[str, object, int, bool]]:
    for section, value in row.items():
        is_read = name != CONFIGURATION or section in _READ_SECTIONS
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
_LENGTH_BYTES = 8  # little-endian length of a safetensors header
_SUFFIXES = (".json", ".txt", ".safetensors", ".bin")
_TENSOR_ARCHIVES = (b"PK\x03\x04", b"\x80")  # zip; pickle of protocol 2 or later
# First bytes of programs, libraries, scripts and byte code.
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
    """Whether a file is a program, by its first bytes.

    Args:
        head: the first HEAD_BYTES bytes.
    """
    return head.startswith(_PROGRAMS)


def find_format_problem(name: str, size: int, file: BinaryIO) -> str:
    """Check that the content of a file matches its extension.

    Args:
        name: file name.
        size: of the whole file, bytes.
        file: positioned at the beginning.

    Returns:
        The problem, for people; empty if there is none.

    Raises:
        OSError: it cannot be read.
    """
    mistake = identify_mistake(file.read(MISTAKE_BYTES))
    if mistake:
        return f"{name} {mistake}"
    file.seek(0)
    suffix = PurePosixPath(name).suffix
    if suffix not in _SUFFIXES:
        return f"{name} has none of the supported extensions ({', '.join(_SUFFIXES)})"
    if suffix == ".safetensors":
        return _find_safetensors_problem(name, size, file)
    if suffix == ".bin":
        return "" if file.read(HEAD_BYTES).startswith(_TENSOR_ARCHIVES) else f"{name} is not a PyTorch archive"
    return _find_text_problem(name, size, file, is_json=suffix == ".json")


def _find_safetensors_problem(name: str, size: int, file: BinaryIO) -> str:
    """A safetensors file is the header's length, the header (a JSON object), and the tensor data."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):  # noqa: PLR2004  "{}"
        return f"{name} is not a safetensors file: it does not start with the length of a header"
    try:
        header = load_json(file.read(length))
    except ValueError:
        header = None
    return "" if isinstance(header, dict) else f"{name} is not a safetensors file: its header is not a JSON object"


def _find_text_problem(name: str, size: int, file: BinaryIO, *, is_json: bool) -> str:
    """Text is UTF-8 without NUL; JSON starts with an object or a list."""
    if size > MAX_TEXT_BYTES:
        return f"{name} has {size} bytes; text files have at most {MAX_TEXT_BYTES}"
    decoder, begins = codecs.getincrementaldecoder("utf-8")(), b""
    try:
        for chunk in _chunks(file):
            begins = begins or chunk.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
            if b"\0" in chunk:
                return f"{name} is not a text file: it contains NUL"
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return f"{name} is not UTF-8 text"
    if is_json and begins not in (b"{", b"["):
        return f"{name} is not JSON: it does not start with an object or a list"
    return ""


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
