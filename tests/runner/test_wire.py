"""Frames are decoded however their bytes arrive, and invalid frames are refused."""

import os
import socket
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.runner.v1 import runner_pb2
from inference.runner.items import read_items
from inference.wire import (
    HEADER,
    MAX_FRAME_BYTES,
    FrameDecoder,
    FrameError,
    frame,
    items_frame,
    read_frame,
    unsent,
    write_frame,
)


def encode(payloads: Sequence[bytes]) -> bytes:
    """The stream that these payloads make."""
    return b"".join(part for payload in payloads for part in frame(payload))


def speak(way: socket.socket, *payloads: bytes) -> None:
    """Send payloads, then end."""
    for payload in payloads:
        write_frame(way, payload)
    way.close()


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 50)))
def test_frames_are_decoded_however_the_stream_is_split(payloads: list[bytes], sizes: list[int]) -> None:
    """Any split of the stream gives the same frames, and no bytes are left."""
    stream, decoder, frames = encode(payloads), FrameDecoder(), []
    for size in [*sizes, len(stream)]:
        piece, stream = stream[:size], stream[size:]
        frames += decoder.feed(piece)
    assert payloads == frames
    assert not decoder.is_amid_frame


@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_partial_frame_is_not_returned(payload: bytes, data: st.DataObject) -> None:
    """Until its last byte has arrived the decoder returns no frame and reports that it is incomplete."""
    stream = encode([payload])
    cut = data.draw(st.integers(1, len(stream) - 1))
    decoder = FrameDecoder()
    assert decoder.feed(stream[:cut]) == []
    assert decoder.is_amid_frame
    assert [payload] == decoder.feed(stream[cut:])


def test_a_large_frame_costs_one_copy() -> None:
    """16 MiB in pieces of 4 KiB are joined once; joining at every piece would copy 32 GB."""
    payload = bytes(16 << 20)
    stream, decoder = encode([payload]), FrameDecoder()
    frames = [found for at in range(0, len(stream), 4096) for found in decoder.feed(stream[at : at + 4096])]
    assert [payload] == frames


def test_a_length_over_the_cap_is_refused_by_its_header() -> None:
    """Nothing is allocated for the payload."""
    with pytest.raises(FrameError, match="maximum"):
        FrameDecoder().feed(HEADER.pack(MAX_FRAME_BYTES + 1))
    with pytest.raises(FrameError, match="maximum"):
        FrameDecoder(max_bytes=3).feed(encode([b"four"]))


def test_a_payload_over_the_cap_is_not_sent() -> None:
    """The sender raises."""
    with pytest.raises(FrameError, match="maximum"):
        frame(bytes(MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (100_000, 7), (0, 1 << 21)])
def test_items_are_read_with_their_pictures(sizes: tuple[int, int]) -> None:
    """The pictures follow the message in the order of the items; none is copied on either side."""
    message = runner_pb2.ComputeItems(
        items=[runner_pb2.Item(item_id=number, picture_bytes=size) for number, size in enumerate(sizes)]
    )
    pictures = [os.urandom(size) for size in sizes]
    parts = items_frame(message.SerializeToString(), [picture for picture in pictures if picture])
    [payload] = FrameDecoder().feed(b"".join(parts))
    found = read_items(bytearray(payload))
    assert all(part is picture for part, picture in zip(parts[1:], filter(None, pictures), strict=True))
    assert [item.item_id for item, _ in found] == [0, 1]
    assert [bytes(picture) for _, picture in found] == pictures
    assert {type(picture) for _, picture in found} == {memoryview}


@pytest.mark.parametrize(
    ("announced", "carried", "cut"), [((), 0, 0), ((3,), 4, 0), ((5,), 4, 0), ((-1, 5), 4, 0), ((4,), 4, 5)]
)
def test_pictures_that_are_not_those_of_the_items_are_refused(
    announced: tuple[int, ...], carried: int, cut: int
) -> None:
    """None, too few or too many bytes, a negative size, and a message that is longer than the frame."""
    message = runner_pb2.ComputeItems(items=[runner_pb2.Item(picture_bytes=size) for size in announced])
    parts = items_frame(message.SerializeToString(), [bytes(carried)])
    payload = bytearray(b"".join(parts)[HEADER.size :])
    with pytest.raises(FrameError):
        read_items(payload[: len(payload) - cut] if cut else payload)


def test_a_frame_of_items_over_the_cap_is_not_sent() -> None:
    """The length of the message counts too."""
    with pytest.raises(FrameError, match="maximum"):
        items_frame(b"", [bytes(MAX_FRAME_BYTES - 2)])


def test_blocking_reader_and_writer_use_the_same_frames() -> None:
    """A frame larger than any socket buffer is read back; then the end of the stream is reported."""
    here, there = socket.socketpair()
    payload = bytes(range(256)) * 8192
    with here, there:
        writer = threading.Thread(target=speak, args=(here, payload, b""))
        writer.start()
        assert read_frame(there) == bytearray(payload)
        assert read_frame(there) == bytearray()
        assert read_frame(there) is None
        writer.join()


@pytest.mark.parametrize("sent", [b"\0\0", HEADER.pack(9), HEADER.pack(9) + b"half"])
def test_the_end_of_a_stream_inside_a_frame_is_an_error(sent: bytes) -> None:
    """It differs from a regular end."""
    here, there = socket.socketpair()
    with here, there:
        here.sendall(sent)
        here.close()
        with pytest.raises(FrameError):
            read_frame(there)


def test_a_blocking_reader_refuses_a_length_over_the_cap() -> None:
    """It does not wait for the payload."""
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"\xff" * 64)
        with pytest.raises(FrameError, match="maximum"):
            read_frame(there)


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1), st.data())
def test_a_partial_send_leaves_the_remaining_bytes(parts: list[bytes], data: st.DataObject) -> None:
    """After a partial send exactly the bytes behind it are left."""
    stream = b"".join(parts)
    sent = data.draw(st.integers(0, len(stream)))
    left = unsent([memoryview(part) for part in parts], sent)
    assert stream[sent:] == b"".join(left)
