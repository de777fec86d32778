"""Frames between server and runner: four bytes of length, then a protobuf message, capped before allocating.

And the record of an answer, which both sides make of such a message.
"""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAX_FRAME_BYTES = 64 << 20
HEADER = struct.Struct(">I")

_SEVEN_BITS = 0x7F  # of a number, in each byte of its encoding
_BATCH_TAG = b"\x12"  # of RunnerRequest.batch: field 2, length-delimited
_ITEM_TAG = b"\x12"  # of ComputeBatch.items: field 2, length-delimited
_ENTAILMENT_TAG = b"\x1a"  # of BatchItem.entailment: field 3, length-delimited
_IMAGE_TAG = b"\x0a"  # of EntailmentTask.image: field 1, length-delimited


@dataclass(frozen=True, slots=True)
class EntailmentScores:
    """Probabilities of the three answers to one statement; they sum to 1."""

    yes: float
    no: float
    maybe: float


class FrameError(ValueError):
    """The other side does not speak in frames, or stopped in the middle of one."""


class FrameDecoder:
    """Cuts a stream of bytes into frames, however the bytes happen to arrive.

    Chunks are joined once, when a frame is whole, so that a large frame costs no more a byte than
    a small one; nothing is allocated because a length says so.
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._held = 0
        self._needed = HEADER.size

    @property
    def is_amid_frame(self) -> bool:
        """Whether a part of a frame has come and the rest has not."""
        return self._held > 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes and give back the frames that are whole now, without their headers.

        Raises:
            FrameError: a header announces more than the cap; the stream cannot be read any further.
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
    """One frame, in parts that are to be sent one after the other: a large payload is not copied for four bytes.

    Raises:
        FrameError: the payload is over the cap.
    """
    return [_header(len(payload)), payload]


def batch_frame(batch: bytes, items: Sequence[tuple[bytes, bytes]] = ()) -> list[bytes]:
    """One frame that holds `RunnerRequest(batch=…)`, in parts; no picture is copied.

    A message put into another one is copied by the library, pictures and all. Its encoding is
    just a tag and a length before the same bytes, so these are written here. An item's picture
    comes as a second `entailment` field with nothing but the picture: a reader merges the two, as
    the encoding's rules say of a message field that stands twice.

    Args:
        batch: the serialised ComputeBatch, without the items that follow.
        items: further items: each the serialised BatchItem without its picture, and the picture.

    Raises:
        FrameError: the frame is over the cap.
    """
    parts = [b"", batch]
    for item, image in items:
        picture = _IMAGE_TAG + _varint(len(image))
        task = _ENTAILMENT_TAG + _varint(len(picture) + len(image)) + picture
        parts.append(_ITEM_TAG + _varint(len(item) + len(task) + len(image)) + item + task)
        parts.append(image)
    size = sum(map(len, parts))
    wrapper = _BATCH_TAG + _varint(size)
    parts[0] = _header(len(wrapper) + size) + wrapper
    return parts


def read_frame(way: socket.socket, max_bytes: int = MAX_FRAME_BYTES) -> bytearray | None:
    """Wait for the next frame on a blocking socket; None if the other side ended between two frames.

    Raises:
        FrameError: over the cap, or the other side ended in the middle of it.
        OSError: the socket is broken.
    """
    header = _receive(way, HEADER.size)
    if header is None:
        return None
    body = _receive(way, _checked_length(header, max_bytes))
    if body is None:
        raise FrameError("the other side ended after a header")
    return body


def write_frame(way: socket.socket, payload: bytes) -> None:
    """Send one frame on a blocking socket; one thread at a time.

    Raises:
        FrameError: the payload is over the cap.
        OSError: the other side is gone.
    """
    way.sendall(b"".join(frame(payload)))


def unsent(parts: Sequence[memoryview], sent: int) -> list[memoryview]:
    """What is left to send of `parts` after the first `sent` bytes of them went."""
    left: list[memoryview] = []
    for part in parts:
        if sent < len(part):
            left.append(part[sent:])
        sent = max(0, sent - len(part))
    return left


def _receive(way: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view = memoryview(buffer)
    at = 0
    while at < count:
        got = way.recv_into(view[at:], 0, socket.MSG_WAITALL)
        if got == 0 and at == 0:
            return None
        if got == 0:
            raise FrameError("the other side ended in the middle of a frame")
        at += got
    return buffer


def _checked_length(header: bytes | bytearray, max_bytes: int) -> int:
    length: int = HEADER.unpack(header)[0]
    if length > max_bytes:
        raise FrameError(f"a frame of {length} bytes is announced, the cap is {max_bytes}")
    return length


def _header(length: int) -> bytes:
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes, the cap is {MAX_FRAME_BYTES}")
    return HEADER.pack(length)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > _SEVEN_BITS:
        encoded.append(0x80 | (number & _SEVEN_BITS))
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
