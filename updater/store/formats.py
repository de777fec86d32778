"""Of which format a file is, by its ending and by its content. Numbers 9 and 10 of the list in `checks`."""

import codecs
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

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
