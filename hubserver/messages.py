"""HTTP as far as a hub needs it: heads read from bytes, ranges, answers. Pure.

Rules of trust:
 1. A head has at most MAX_HEAD_BYTES; its target is ASCII, begins with a slash and has no control character.
 2. A request with a body is refused before a byte of the body is read, but where one is expected it has a length,
    and at most MAX_BODY_BYTES of it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import parse_qs, unquote

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 8 * 1024
HEAD_END = b"\r\n\r\n"
_MAX_PARAMETERS = 16
_TARGET = re.compile(r"/[\x21-\x7e]*")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Refused(Exception):
    """A request that is answered with an error; the sentence is told to whoever asked."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks."""

    method: str
    target: str  # as it came
    path: str  # decoded
    parameters: Mapping[str, str]  # of the query, decoded; the first of each name
    headers: Mapping[str, str]  # names in lower case
    body_bytes: int  # announced
    keeps_alive: bool


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an open file; whoever sends it closes it."""

    file: BinaryIO
    first: int  # offset in the file
    count: int  # bytes


Part = bytes | Span


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()  # of the body, in order

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(map(size_of, self.parts))

    def close(self) -> None:
        """Let go of its files."""
        for part in self.parts:
            if isinstance(part, Span):
                part.file.close()


def size_of(part: Part) -> int:
    """Bytes of a part of a body."""
    return part.count if isinstance(part, Span) else len(part)


def sliced(parts: Sequence[Part], first: int, count: int) -> tuple[Part, ...]:
    """The bytes of a body from an offset on, at most `count` of them; the parts' files stay the same."""
    taken: list[Part] = []
    for part in parts:
        size = size_of(part)
        begin, end = min(max(first, 0), size), min(max(first + count, 0), size)
        first -= size
        if begin >= end:
            continue
        if isinstance(part, Span):
            taken.append(replace(part, first=part.first + begin, count=end - begin))
        else:
            taken.append(part[begin:end])
    return tuple(taken)


def read_head(head: bytes) -> Request:
    """Understand the head of a request, without its final empty line.

    Raises:
        Refused: it is none, or of a kind that is not answered here.
    """
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):  # noqa: PLR2004  method, target, version
        raise Refused(HTTPStatus.BAD_REQUEST, "the first line is no request of HTTP/1.1")
    method, target, version = words
    if _TARGET.fullmatch(target) is None:  # rule 1
        raise Refused(HTTPStatus.BAD_REQUEST, "the target is no path in ASCII")
    headers = _headers(rest)
    path, _, query = target.partition("?")
    connection = headers.get("connection", "").lower()
    return Request(
        method=method,
        target=target,
        path=unquote(path, errors="replace"),
        parameters=_parameters(query),
        headers=headers,
        body_bytes=_body_bytes(headers),
        keeps_alive="close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection),
    )


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes that a `Range` asks for; None: it asks for nothing that is understood.

    Args:
        text: the header's value; several ranges count as not understood, so that the whole file is sent.
        size: bytes of the file.

    Raises:
        Refused: the range lies beyond the file.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first_text, last_text = found.groups()
    if not first_text:  # the last so many bytes
        count = min(int(last_text), size)
        first = size - count
    else:
        first = int(first_text)
        last = min(int(last_text), size - 1) if last_text else size - 1
        if last_text and int(last_text) < first:
            return None
        count = last - first + 1
    if count <= 0:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {size} bytes", headers)
    return first, count


def head_bytes(status: HTTPStatus, headers: Mapping[str, str], *, keeps_alive: bool) -> bytes:
    """The head of an answer, with its final empty line."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Connection: {'keep-alive' if keeps_alive else 'close'}")
    return "\r\n".join(lines).encode("latin-1") + HEAD_END


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or not value.isprintable():
            raise Refused(HTTPStatus.BAD_REQUEST, "a header is malformed")
        if name.lower() in headers and name.lower() in ("content-length", "transfer-encoding", "authorization"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name.lower()} stands twice")
        headers[name.lower()] = value.strip()
    return headers


def _parameters(query: str) -> dict[str, str]:
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS, errors="replace")
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "the query is malformed") from error
    return {name: values[0] for name, values in found.items()}


def _body_bytes(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "a body needs a length")
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit():
        raise Refused(HTTPStatus.BAD_REQUEST, "content-length is no number")
    if len(text) > len(str(MAX_BODY_BYTES)) or int(text) > MAX_BODY_BYTES:  # rule 2
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes")
    return int(text)
