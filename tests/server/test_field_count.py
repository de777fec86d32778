"""The number of fields of a message is limited before protobuf makes objects of them."""

import tracemalloc

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputRefused
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2
from hotslot.oip.v2 import open_inference_pb2 as oip
from inference.server.api.address import ADDRESS
from inference.server.api.convert import MAX_FIELDS, MAX_PACKED_BYTES, check_field_count, parse
from inference.server.api.entailment import ENTAILMENT

MANY = 1_000_000
FEW_BYTES = 4 << 20


def sized(number: int, content: bytes) -> bytes:
    """A field with a length."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def refusal(kind: type[Message], raw: bytes) -> tuple[str, str]:
    """Reason and field with which a message is refused; almost nothing is allocated for it."""
    tracemalloc.start()
    try:
        with pytest.raises(InputRefused, match="has too many entries: a message may have ") as refused:
            parse(kind, raw)
        assert tracemalloc.get_traced_memory()[1] < FEW_BYTES
    finally:
        tracemalloc.stop()
    return refused.value.reason, refused.value.field


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (address_pb2.StreamPredictRequest, b"\x0a\x00" * MANY, ("ITEMS_TOO_MANY", "items")),
        (entailment_pb2.StreamPredictRequest, b"\x0a\x00" * MANY, ("ITEMS_TOO_MANY", "items")),
        (address_pb2.PredictRequest, b"\x12\x00" * MANY, ("ADDRESSES_TOO_MANY", "addresses")),
        (entailment_pb2.PredictRequest, b"\x1a\x00" * MANY, ("STATEMENTS_TOO_MANY", "statements")),
        (
            address_pb2.StreamPredictRequest,
            sized(1, sized(1, b"a") + sized(2, b"\x12\x00" * MANY)),
            ("ADDRESSES_TOO_MANY", "addresses"),
        ),
        (  # what comes after it is malformed, and is not seen before it
            address_pb2.StreamPredictRequest,
            sized(1, sized(2, b"\x12\x00" * MANY)) + sized(1, b"\x0a\x7f"),
            ("ADDRESSES_TOO_MANY", "addresses"),
        ),
        (  # in a group, which protobuf skips
            address_pb2.PredictRequest,
            b"\x7b" + b"\x12\x00" * MANY + b"\x7c",
            ("ADDRESSES_TOO_MANY", "addresses"),
        ),
        (address_pb2.PredictRequest, b"\x7a\x00" * MANY, ("MESSAGE_MALFORMED", "")),
        (oip.ModelInferRequest, b"\x2a\x00" * MANY, ("MESSAGE_MALFORMED", "inputs")),
        (
            oip.ModelInferRequest,
            sized(5, sized(3, bytes(MAX_PACKED_BYTES + 1))),
            ("MESSAGE_MALFORMED", "shape"),
        ),
    ],
)
def test_many_fields_are_refused_before_anything_is_made_of_them(
    kind: type[Message], raw: bytes, expected: tuple[str, str]
) -> None:
    """At the top, in items, unknown ones, in groups, and packed numbers."""
    assert refusal(kind, raw) == expected


def test_the_largest_allowed_message_is_far_from_the_limit() -> None:
    """64 items of 64 addresses, and 64 of 32 statements."""
    addresses = address_pb2.PredictRequest(model="m", addresses=["文一西路969号" * 40] * 64)
    tagged = address_pb2.StreamPredictRequest(
        items=[address_pb2.StreamItem(item_id=str(number), request=addresses) for number in range(64)]
    )
    statements = entailment_pb2.PredictRequest(
        model="m", image=entailment_pb2.Image(content=b"1"), statements=["there is a dog" * 40] * 32, premise="p"
    )
    judged = entailment_pb2.StreamPredictRequest(
        items=[entailment_pb2.StreamItem(item_id=str(number), request=statements) for number in range(64)]
    )

    assert len(ADDRESS.parse_items(tagged.SerializeToString())) == 64
    assert len(ENTAILMENT.parse_items(judged.SerializeToString())) == 64
    with pytest.raises(InputRefused):  # twice as much is not
        check_field_count(tagged.DESCRIPTOR, 2 * tagged.SerializeToString())


@given(st.binary(min_size=0, max_size=200), st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_counted(raw: bytes, zeros: int) -> None:
    """Whatever they are: it ends, and refuses nothing that has few fields."""
    for kind in (address_pb2.StreamPredictRequest, oip.ModelInferRequest):
        check_field_count(kind.DESCRIPTOR, raw + b"\x00" * zeros)


@given(st.lists(st.sampled_from([b"\x0a\x00", b"\x12\x01a", b"\x7a\x00", b"\x0a\x02\x12\x00"]), max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_more_fields_than_were_counted_are_parsed(parts: list[bytes]) -> None:
    """Of a valid message every field is counted: with one more than the limit it is refused."""
    raw = b"".join(parts)
    try:
        address_pb2.StreamPredictRequest.FromString(raw)
    except DecodeError:
        return
    full = raw + b"\x7a\x00" * MAX_FIELDS
    if parts:
        with pytest.raises(InputRefused):
            check_field_count(address_pb2.StreamPredictRequest.DESCRIPTOR, full)
    else:
        check_field_count(address_pb2.StreamPredictRequest.DESCRIPTOR, full)
