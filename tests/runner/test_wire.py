"""Frames are decoded however their bytes arrive, and invalid frames are refused."""

import socket
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.runner.v1 import runner_pb2
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


@pytest.mark.parametrize("size", [0, 1, 127, 128, 100_000, 1 << 21])
def test_a_hand_written_frame_of_items_parses_as_protobuf(size: int) -> None:
    """Tags and lengths written by hand parse as RunnerRequest(items=…), with and without a picture."""
    items = [
        runner_pb2.Item(item_id=7, entailment=runner_pb2.EntailmentTask(statements=["a cat", "a dog"])),
        runner_pb2.Item(item_id=8, priority=1, address=runner_pb2.AddressTask(addresses=["x"])),
    ]
    parts = items_frame([(items[0].SerializeToString(), bytes(size)), (items[1].SerializeToString(), b"")])
    [payload] = FrameDecoder().feed(b"".join(parts))
    items[0].entailment.image = bytes(size)
    assert runner_pb2.RunnerRequest.FromString(payload).items == runner_pb2.ComputeItems(items=items)


def test_a_frame_of_items_over_the_cap_is_not_sent() -> None:
    """The hand-written tags and lengths count too."""
    with pytest.raises(FrameError, match="maximum"):
        items_frame([(b"", bytes(MAX_FRAME_BYTES - 2))])


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
