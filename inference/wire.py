"""Frames between server and runner: a length of four bytes, then a protobuf message.

The length is checked before memory is allocated. Also the records of the results and the size of a device row, which
both sides use.
"""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from common.records import record

MAX_FRAME_BYTES = 64 << 20
Picture = bytes | memoryview  # a view keeps the message in memory that the picture arrived in
LABELS = ("yes", "no", "maybe")
HEADER = struct.Struct(">I")

_SEVEN_BITS = 0x7F  # payload bits of each byte of a varint
_ITEMS_TAG = b"\x12"  # of RunnerRequest.items: field 2, length-delimited
_ITEM_TAG = b"\x12"  # of ComputeItems.items: field 2, length-delimited
_ENTAILMENT_TAG = b"\x1a"  # of Item.entailment: field 3, length-delimited
_IMAGE_TAG = b"\x0a"  # of EntailmentTask.image: field 1, length-delimited


@record
class EntailmentScores:
    """Probabilities of the three answers to one statement; they sum to 1."""

    yes: float
    no: float
    maybe: float

    @property
    def label(self) -> str:
        """The most probable answer; of equal ones the first of "yes", "no", "maybe"."""
        if self.yes >= self.no and self.yes >= self.maybe:
            return "yes"
        return "no" if self.no >= self.maybe else "maybe"


@dataclass(frozen=True, slots=True)
class AddressSpan:
    """One tagged part of an address."""

    kind: str
    start: int  # first code point
    end: int  # code point after the last
    probability: float  # of the returned labels, 0..1


CHARACTERS_A_ROW = 32  # of an address; a usual one is a single row


def count_address_rows(address: str) -> int:
    """Device rows of an address, so that rows cost about the same."""
    return max(1, -(-len(address) // CHARACTERS_A_ROW))


class FrameError(ValueError):
    """The peer sent an invalid or incomplete frame, or a frame exceeds the maximum size."""


class FrameDecoder:
    """Splits a stream of bytes into frames.

    Chunks are joined once, when a frame is complete, so that the cost per byte does not grow with the frame.
    Memory grows with the bytes received, never with an announced length.
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = HEADER.size

    @property
    def is_amid_frame(self) -> bool:
        """Whether a frame has arrived in part."""
        return self._held > 0

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes; returns the payloads of the frames that are now complete.

        Raises:
            FrameError: a header announces more than the maximum; the stream cannot be continued.
        """
        self._chunks.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return []
        stream = data if len(self._chunks) == 1 else b"".join(self._chunks)
        frames, end = self._cut(stream)
        rest = stream[end:]
        self._chunks = [rest] if rest else []
        self._held = len(rest)
        return frames

    def _cut(self, stream: bytes) -> tuple[list[bytes], int]:
        frames: list[bytes] = []
        at = 0
        while True:
            body = at + HEADER.size
            if len(stream) < body:
                self._needed = HEADER.size
                return frames, at
            length = _checked_length(stream[at:body], self._max_bytes)
            if len(stream) < body + length:
                self._needed = HEADER.size + length
                return frames, at
            at = body + length
            frames.append(stream[body:at])


def frame(payload: bytes) -> list[bytes]:
    """Build one frame, as buffers to send in order, so that the payload is not copied.

    Raises:
        FrameError: the payload exceeds the maximum size.
    """
    return [_header(len(payload)), payload]


def items_frame(items: Sequence[tuple[bytes, Picture]]) -> list[Picture]:
    """Build one frame with `RunnerRequest(items=…)`, as buffers to send in order; no picture is copied.

    The protobuf library copies a message that is put into another one. The encoding of a nested message is a tag,
    a length and the same bytes, so the tags and lengths are written here. The picture of an item follows as a
    second `entailment` field that contains only the picture: parsers merge repeated occurrences of a message field.

    Args:
        items: each a serialised Item without its picture, and the picture; empty for an item that has none.

    Raises:
        FrameError: the frame exceeds the maximum size.
    """
    parts: list[Picture] = [b""]
    for item, image in items:
        if not image:
            parts.append(_ITEM_TAG + _varint(len(item)) + item)
            continue
        picture = _IMAGE_TAG + _varint(len(image))
        task = _ENTAILMENT_TAG + _varint(len(picture) + len(image)) + picture
        parts.append(_ITEM_TAG + _varint(len(item) + len(task) + len(image)) + item + task)
        parts.append(image)
    size = sum(map(len, parts))
    wrapper = _ITEMS_TAG + _varint(size)
    parts[0] = _header(len(wrapper) + size) + wrapper
    return parts


def read_frame(connection: socket.socket, max_bytes: int = MAX_FRAME_BYTES) -> bytearray | None:
    """Read the next frame from a blocking socket; None if the peer closed between two frames.

    Raises:
        FrameError: the frame exceeds the maximum size, or is incomplete.
        OSError: the socket is broken.
    """
    header = _receive(connection, HEADER.size)
    if header is None:
        return None
    body = _receive(connection, _checked_length(header, max_bytes))
    if body is None:
        raise FrameError("the peer closed after a header")
    return body


def write_frame(connection: socket.socket, payload: bytes) -> None:
    """Send one frame on a blocking socket; not safe for concurrent calls.

    Raises:
        FrameError: the payload exceeds the maximum size.
        OSError: the peer has closed.
    """
    connection.sendall(b"".join(frame(payload)))


def unsent(parts: Sequence[memoryview], sent: int) -> list[memoryview]:
    """The buffers that remain after the first `sent` bytes of `parts`."""
    left: list[memoryview] = []
    for part in parts:
        if sent < len(part):
            left.append(part[sent:])
        sent = max(0, sent - len(part))
    return left


def _receive(connection: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view = memoryview(buffer)
    at = 0
    while at < count:
        got = connection.recv_into(view[at:], 0, socket.MSG_WAITALL)
        if got == 0 and at == 0:
            return None
        if got == 0:
            raise FrameError("the peer closed in the middle of a frame")
        at += got
    return buffer


def _checked_length(header: bytes | bytearray, max_bytes: int) -> int:
    length: int = HEADER.unpack(header)[0]
    if length > max_bytes:
        raise FrameError(f"announced frame of {length} bytes, maximum {max_bytes}")
    return length


def _header(length: int) -> bytes:
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes, maximum {MAX_FRAME_BYTES}")
    return HEADER.pack(length)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > _SEVEN_BITS:
        encoded.append(0x80 | (number & _SEVEN_BITS))
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
