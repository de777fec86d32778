"""Target: the frames between server and runner, and the messages in them, on both sides."""

import contextlib
import math
import socket
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from hotslot.runner.v1 import runner_pb2
from inference.runner.items import read_items
from inference.runner.prepare import TaskMissing, read_item
from inference.server.runner_client.replies import find_impossible_number
from inference.wire import FrameDecoder, FrameError, items_frame, read_frame, unsent
from tests.fuzz.requests import length_field, varint
from tests.fuzz.source import Source

_MAX_FRAME = 300  # bytes; a short input reaches it
_HEADER = 4


def check(data: bytes) -> None:
    """Cut a stream of frames on both sides, and parse what was cut; or build a frame of items and read it again."""
    source = Source(data)
    if source.is_one_in(3):
        _check_items(source)
        return
    stream = b"".join(_frame_bytes(source) for _ in range(source.integer(0, 5))) + source.take(12)
    expected, is_broken, is_complete = _cut_plainly(stream)
    assert _cut_in_chunks(source, stream) == (expected, is_broken, is_broken or not is_complete)
    assert _read_from_socket(stream) == (expected, is_broken or not is_complete)
    for payload in expected:
        _parse(payload)


def _frame_bytes(source: Source) -> bytes:
    payload = source.choose((_random_payload, _request_payload, _reply_payload))(source)
    length = len(payload)
    if source.is_one_in(12):
        length = source.choose((length + 1, max(0, length - 1), _MAX_FRAME, _MAX_FRAME + 1, 0xFFFFFFFF))
    return length.to_bytes(_HEADER, "big") + payload


def _random_payload(source: Source) -> bytes:
    return source.take(40)


def _request_payload(source: Source) -> bytes:
    """A RunnerRequest, with fields in a wrong place or of a wrong type now and then."""
    item = varint(1 << 3) + varint(source.integer(0, 9))
    for _ in range(source.integer(0, 3)):
        task = length_field(source.integer(1, 4), source.take(8)) + length_field(2, source.text(8).encode())
        item += length_field(source.integer(1, 9), task)
    body = length_field(source.integer(1, 3), item) + source.take(4)
    return length_field(source.integer(1, 6), body, off=source.choose((0, 0, 0, 0, 1, -1)))


def _reply_payload(source: Source) -> bytes:
    """A RunnerReply."""
    if source.is_one_in(3):
        return _numbers_payload(source)
    outcome = varint(1 << 3) + varint(source.integer(0, 9)) + length_field(source.integer(2, 6), source.take(20))
    return length_field(source.integer(1, 6), length_field(source.integer(1, 2), outcome) + source.take(4))


def _numbers_payload(source: Source) -> bytes:
    """A RunnerReply of the right form, whose numbers may be impossible."""
    reply = runner_pb2.RunnerReply()
    outcome = reply.items.outcomes.add(item_id=1, prepared_seconds=_number(source), computed_seconds=_number(source))
    outcome.computed_rows = source.choose((1, 0, -1))
    outcome.entailment.scores.add(yes=_number(source), no=_number(source), maybe=_number(source))
    reply.items.calls.add(rows=source.choose((1, 0, -1)), computed_seconds=_number(source))
    heartbeat = runner_pb2.Heartbeat(seconds_on_step=_number(source))
    load = runner_pb2.LoadOutcome(row_seconds=_number(source))
    others = (runner_pb2.RunnerReply(heartbeat=heartbeat), runner_pb2.RunnerReply(load_outcome=load))
    return source.choose((reply, *others)).SerializeToString()


def _number(source: Source) -> float:
    return source.choose((0.5, 0.5, 0.5, 0.0, -1.0, 2.0, 1e12, math.nan, math.inf))


def _cut_plainly(stream: bytes) -> tuple[list[bytes], bool, bool]:
    """The payloads, whether a header announces too much, and whether the last frame is complete."""
    payloads: list[bytes] = []
    while len(stream) >= _HEADER:
        length = int.from_bytes(stream[:_HEADER], "big")
        if length > _MAX_FRAME:
            return payloads, True, False
        if len(stream) < _HEADER + length:
            break
        payloads.append(stream[_HEADER : _HEADER + length])
        stream = stream[_HEADER + length :]
    return payloads, False, not stream


def _cut_in_chunks(source: Source, stream: bytes) -> tuple[list[bytes], bool, bool]:
    """The server's side. A frame that is complete in the chunk that breaks the stream is lost with it."""
    decoder = FrameDecoder(_MAX_FRAME)
    payloads: list[bytes] = []
    size = source.choose((1, 3, 7, 64, 1000))
    for start in range(0, len(stream), size):
        try:
            payloads += decoder.feed(stream[start : start + size])
        except FrameError:
            expected, *_ = _cut_plainly(stream)
            assert payloads == expected[: len(payloads)]
            return expected, True, True
    return payloads, False, decoder.is_amid_frame


def _read_from_socket(stream: bytes) -> tuple[list[bytes], bool]:
    """The runner's side, until the end or an error."""
    payloads: list[bytes] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(stream)
        theirs.close()
        try:
            while (payload := read_frame(ours, _MAX_FRAME)) is not None:
                payloads.append(bytes(payload))
        except FrameError:
            return payloads, True
    return payloads, False


def _parse(payload: bytes) -> None:
    """What each side does with a payload; DecodeError and TaskMissing are what it expects."""
    with contextlib.suppress(DecodeError):
        find_impossible_number(runner_pb2.RunnerReply.FromString(payload))
    try:
        request = runner_pb2.RunnerRequest.FromString(payload)
    except DecodeError:
        return
    assert request.WhichOneof("body") in (None, "load", "cancel", "retire", "priority")
    with contextlib.suppress(DecodeError, FrameError):
        for message, picture in read_items(bytearray(payload)):
            with contextlib.suppress(TaskMissing):
                assert read_item(message, picture) is not None


def _check_items(source: Source) -> None:
    """What is read from a frame of items is what was written, or is refused if the frame is damaged."""
    message, pictures = runner_pb2.ComputeItems(), list[bytes]()
    for number in range(source.integer(1, 4)):
        picture = source.take(300) * source.choose((1, 1, 60))
        item = message.items.add(item_id=number, priority=source.integer(-3, 3), seconds_left=source.integer(0, 9))
        item.entailment.statements.extend(source.text(20) for _ in range(source.integer(0, 3)))
        item.entailment.premise = source.text(20)
        item.picture_bytes = len(picture)
        pictures.append(picture)
    parts = items_frame(message.SerializeToString(), [picture for picture in pictures if picture])
    _check_unsent(source, parts)
    (payload,) = FrameDecoder().feed(b"".join(parts))
    assert [(item, bytes(picture)) for item, picture in read_items(bytearray(payload))] == [
        *zip(message.items, pictures, strict=True)
    ]
    damaged = bytearray(payload)
    damaged[source.integer(0, len(damaged) - 1)] ^= source.integer(1, 255)
    with contextlib.suppress(DecodeError, FrameError):
        read_items(damaged[: source.integer(0, len(damaged))])


def _check_unsent(source: Source, parts: Sequence[bytes | memoryview]) -> None:
    whole = b"".join(parts)
    sent = source.integer(0, len(whole))
    assert b"".join(unsent([memoryview(part) for part in parts], sent)) == whole[sent:]
