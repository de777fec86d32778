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
        size = len(data) - HEADER.size
        if not self._chunks and 0 <= size <= self._max_bytes and data.startswith(HEADER.pack(size)):
            return [data[HEADER.size :]]  # as most chunks: one frame, and nothing else
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


def items_frame(message: bytes, pictures: Sequence[Picture]) -> list[Picture]:
    """Build one frame of items, as buffers to send in order; no picture is copied.

    The protobuf library copies what is put into a message, and what is taken out of one. So the pictures follow the
    message: its length in four bytes, the message, and the pictures in the order of their items.

    Args:
        message: a serialised ComputeItems.
        pictures: of those of its items that have one.

    Raises:
        FrameError: the frame exceeds the maximum size.
    """
    head = HEADER.pack(len(message)) + message
    return [_header(len(head) + sum(map(len, pictures))) + head, *pictures]


def split_items(payload: bytearray) -> tuple[memoryview, memoryview]:
    """Split the payload of a frame of items into the message and the pictures; nothing is copied.

    Raises:
        FrameError: the message exceeds the payload.
    """
    view = memoryview(payload)
    end = HEADER.size + int.from_bytes(view[: HEADER.size])
    if not HEADER.size <= end <= len(view):
        raise FrameError(f"items of {end - HEADER.size} bytes in a frame of {len(view)}")
    return view[HEADER.size : end], view[end:]


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
