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


@pytest.mark.parametrize("tail", [sized(1, b"\x0a\x7f"), b"\x7a" + b"\x80" * 9 + b"\x02", b"\x7f", b"\x7a"])
def test_what_is_malformed_is_refused_before_it_is_parsed(tail: bytes) -> None:
    """What a decoder would make of it is not asked: it might read another part of the message than was counted."""
    with pytest.raises(InputRefused) as refused:
        parse(address_pb2.StreamPredictRequest, sized(1, sized(2, b"\x12\x00" * MANY)) + tail)

    assert refused.value.reason == "MESSAGE_MALFORMED"


def test_items_with_pictures_are_counted_together() -> None:
    """Each of them alone has few enough."""
    request = sized(2, sized(1, b"1")) + b"\x1a\x00" * 8_000
    message = sized(1, sized(1, b"one") + sized(2, request)) * 64
    with pytest.raises(InputRefused) as refused:
        ENTAILMENT.parse_items(message)

    assert (refused.value.reason, refused.value.field) == ("STATEMENTS_TOO_MANY", "statements")


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
        check_field_count(address_pb2.StreamPredictRequest, 2 * tagged.SerializeToString())


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_what_protobuf_takes_is_counted_and_not_refused(raw: bytes) -> None:
    """Whatever the bytes are."""
    for kind in (address_pb2.StreamPredictRequest, oip.ModelInferRequest):
        try:
            kind.FromString(raw)
        except DecodeError:
            continue
        check_field_count(kind, raw)


PARTS = [b"\x0a\x00", b"\x12\x01a", b"\x7a\x00", b"\x0a\x02\x12\x00", b"\x7b\x08\x01\x7c", b"\x7d1234", b"\x7912345678"]


@given(st.lists(st.sampled_from(PARTS), max_size=40))
@settings(max_examples=200, deadline=None)
def test_every_field_is_counted(parts: list[bytes]) -> None:
    """With one more than the limit a message is refused."""
    full = b"".join(parts) + b"\x7a\x00" * MAX_FIELDS
    if parts:
        with pytest.raises(InputRefused):
            check_field_count(address_pb2.StreamPredictRequest, full)
    else:
        check_field_count(address_pb2.StreamPredictRequest, full)
