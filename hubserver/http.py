"""HTTP/1.1 for a read-only server: request heads, ranges, responses, and the bytes of one connection.

Limits and security rules:
 1. A head has at most MAX_HEAD_BYTES; its target is ASCII, begins with a slash and has no control character.
 2. A request with a body is rejected before the body is read; where a body is allowed it needs a length of at most
    MAX_BODY_BYTES.
 3. A head must be complete IDLE_SECONDS after the connection was opened or the last response; no thread waits for it.
 4. A client that receives nothing for STALL_SECONDS, or less than MIN_BYTES_PER_SECOND overall, is disconnected.
"""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import parse_qs, unquote

from common.clock import Clock

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 8 * 1024
HEAD_END = b"\r\n\r\n"
_MAX_PARAMETERS = 16
_TARGET = re.compile(r"/[\x21-\x7e]*")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class RequestRejected(Exception):
    """A request is invalid; the client gets the message in an error response."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A parsed request head."""

    method: str
    target: str  # as it came
    path: str  # decoded
    parameters: Mapping[str, str]  # of the query, decoded; the first of each name
    headers: Mapping[str, str]  # names in lower case
    body_bytes: int  # announced
    keeps_alive: bool


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A part of an open file; the sender closes it."""

    file: BinaryIO
    first: int  # offset in the file
    count: int  # bytes


BodyPart = bytes | FileSpan


@dataclass(frozen=True, slots=True)
class OutgoingResponse:
    """Status, headers and body of a response that is sent in parts."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[BodyPart, ...] = ()  # of the body, in order

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(map(size_of, self.parts))

    def close(self) -> None:
        """Close its files."""
        for part in self.parts:
            if isinstance(part, FileSpan):
                part.file.close()


def size_of(part: BodyPart) -> int:
    """Bytes of a part of a body."""
    return part.count if isinstance(part, FileSpan) else len(part)


def sliced(parts: Sequence[BodyPart], first: int, count: int) -> tuple[BodyPart, ...]:
    """The bytes of a body from an offset on, at most `count` of them; the parts' files stay the same."""
    taken: list[BodyPart] = []
    for part in parts:
        size = size_of(part)
        begin, end = min(max(first, 0), size), min(max(first + count, 0), size)
        first -= size
        if begin >= end:
            continue
        if isinstance(part, FileSpan):
            taken.append(replace(part, first=part.first + begin, count=end - begin))
        else:
            taken.append(part[begin:end])
    return tuple(taken)


def read_head(head: bytes) -> IncomingRequest:
    """Parse the head of a request, without its final empty line.

    Raises:
        RequestRejected: the head is malformed, or the kind of request is not supported.
    """
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):  # noqa: PLR2004  method, target, version
        raise RequestRejected(HTTPStatus.BAD_REQUEST, "the first line is no request of HTTP/1.1")
    method, target, version = words
    if _TARGET.fullmatch(target) is None:  # rule 1
        raise RequestRejected(HTTPStatus.BAD_REQUEST, "the target is no path in ASCII")
    headers = _headers(rest)
    path, _, query = target.partition("?")
    connection = headers.get("connection", "").lower()
    return IncomingRequest(
        method=method,
        target=target,
        path=unquote(path, errors="replace"),
        parameters=_parameters(query),
        headers=headers,
        body_bytes=_body_bytes(headers),
        keeps_alive="close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection),
    )


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes of a `Range` header; None if it is not supported.

    Args:
        text: the header's value; several ranges are not supported, so that the whole file is sent.
        size: bytes of the file.

    Raises:
        RequestRejected: the range lies beyond the file.
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
        raise RequestRejected(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {size} bytes", headers)
    return first, count


def head_bytes(status: HTTPStatus, headers: Mapping[str, str], *, keeps_alive: bool) -> bytes:
    """The head of a response, with its final empty line."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Connection: {'keep-alive' if keeps_alive else 'close'}")
    return "\r\n".join(lines).encode("latin-1") + HEAD_END


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or not value.isprintable():
            raise RequestRejected(HTTPStatus.BAD_REQUEST, "a header is malformed")
        if name.lower() in headers and name.lower() in ("content-length", "transfer-encoding", "authorization"):
            raise RequestRejected(HTTPStatus.BAD_REQUEST, f"the header {name.lower()} appears twice")
        headers[name.lower()] = value.strip()
    return headers


def _parameters(query: str) -> dict[str, str]:
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS, errors="replace")
    except ValueError as error:
        raise RequestRejected(HTTPStatus.BAD_REQUEST, "the query is malformed") from error
    return {name: values[0] for name, values in found.items()}


def _body_bytes(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise RequestRejected(HTTPStatus.LENGTH_REQUIRED, "a body needs a length")
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit():
        raise RequestRejected(HTTPStatus.BAD_REQUEST, "content-length is no number")
    if len(text) > len(str(MAX_BODY_BYTES)) or int(text) > MAX_BODY_BYTES:  # rule 2
        raise RequestRejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes")
    return int(text)


REQUEST_SECONDS = 10.0
IDLE_SECONDS = 15.0
STALL_SECONDS = 30.0
ANSWER_SECONDS = 60.0
MIN_BYTES_PER_SECOND = 16 * 1024
_PIECE_BYTES = 4 << 20
_RECEIVE_BYTES = 16 * 1024


class HeadTooLarge(Exception):
    """A request's head exceeds MAX_HEAD_BYTES."""


class ClientConnection:
    """One client's connection; used by one thread."""

    def __init__(self, connection: socket.socket, clock: Clock, received: bytes = b"") -> None:
        """Use a connected socket; the caller closes it.

        Args:
            connection: connected, its TLS handshake done.
            clock: measures the limits.
            received: what was read of it before.
        """
        self.socket = connection
        self.clock = clock
        self.sent_bytes = 0  # of the present answer's body
        self._received = received

    @property
    def received(self) -> bytes:
        """What was read and belongs to no request so far."""
        return self._received

    def receive_head(self) -> bytes | None:
        """The next request's head without its final empty line; None if none comes in time.

        Raises:
            HeadTooLarge: it exceeds MAX_HEAD_BYTES.
            OSError: the client is gone.
        """
        self.sent_bytes = 0
        is_begun, ends = False, self.clock.monotonic() + IDLE_SECONDS
        while HEAD_END not in self._received:
            if len(self._received) > MAX_HEAD_BYTES:
                raise HeadTooLarge
            if self._received and not is_begun:
                is_begun, ends = True, self.clock.monotonic() + REQUEST_SECONDS
            if not self._receive_more(ends):
                return None
        head, _, self._received = self._received.partition(HEAD_END)
        return head

    def receive_body(self, count: int) -> bytes:
        """Read a request's body of `count` bytes.

        Raises:
            OSError: it did not arrive in time, or the client has disconnected.
        """
        ends = self.clock.monotonic() + REQUEST_SECONDS
        while len(self._received) < count:
            if not self._receive_more(ends):
                raise ConnectionAbortedError("the body is not there in time")
        body, self._received = self._received[:count], self._received[count:]
        return body

    def await_end(self, until: float) -> bool:
        """Wait until the client disconnects, at most until `until`; returns whether it disconnected."""
        while self.clock.monotonic() < until:
            if len(self._received) > MAX_HEAD_BYTES:
                return True
            try:
                if not self._receive_more(until):
                    return self.clock.monotonic() < until
            except OSError:
                return True
        return False

    def send(self, answer: OutgoingResponse, *, keeps_alive: bool, with_body: bool) -> None:
        """Send a response.

        Raises:
            OSError: the client has disconnected or is too slow; `sent_bytes` is the number of bytes sent.
        """
        ends = self.clock.monotonic() + ANSWER_SECONDS + answer.size / MIN_BYTES_PER_SECOND
        headers = {**answer.headers, "Content-Length": str(answer.size)}
        head = head_bytes(answer.status, headers, keeps_alive=keeps_alive)
        first, *rest = answer.parts if with_body and answer.parts else (b"",)
        if isinstance(first, bytes):  # a small answer is one packet
            self.send_bytes(head + first, ends)
            self.sent_bytes = len(first)
            self.send_parts(rest, ends)
        else:
            self.send_bytes(head, ends)
            self.send_parts((first, *rest), ends)

    def send_parts(self, parts: Sequence[BodyPart], ends: float) -> None:
        """Send parts of a body before the deadline `ends`, and count their bytes.

        Raises:
            OSError: the client is gone, or too slow.
        """
        for part in parts:
            if isinstance(part, FileSpan):
                self._send_span(part, ends)
            else:
                self.send_bytes(part, ends)
                self.sent_bytes += len(part)

    def send_bytes(self, content: bytes, ends: float) -> None:
        """Send bytes before the deadline `ends`.

        Raises:
            OSError: the client is gone, or too slow.
        """
        self._limit(ends)
        self.socket.sendall(content)

    def _send_span(self, span: FileSpan, ends: float) -> None:
        """Send with `sendfile`, without a copy where the system supports it."""
        sent = 0
        while sent < span.count:
            self._limit(ends)
            went = self.socket.sendfile(span.file, span.first + sent, min(_PIECE_BYTES, span.count - sent))
            if not went:
                raise ConnectionAbortedError("the file became shorter while it was sent")
            sent += went
            self.sent_bytes += went

    def _receive_more(self, ends: float) -> bool:
        left = ends - self.clock.monotonic()
        if left <= 0:
            return False
        self.socket.settimeout(left)
        try:
            part = self.socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return False
        self._received += part
        return bool(part)

    def _limit(self, ends: float) -> None:
        left = ends - self.clock.monotonic()
        if left <= 0:
            raise TimeoutError("the client takes too long")
        self.socket.settimeout(min(left, STALL_SECONDS))
