"""Requests are parsed without copying the picture, and exactly as protobuf parses them."""

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputRefused
from hotslot.entailment.v1 import entailment_pb2 as pb
from inference.server.api import convert, entailment
from tests.stack.wire import field_bytes

Parsed = Any  # a comparable form of a request
TEXT = st.text(st.characters(codec="utf-8"), max_size=8).map(str.encode)
ANY_BYTES = st.binary(max_size=12)
VARINTS = st.sampled_from([b"\0", b"\x01", b"\x80\x00", b"\xff" * 9 + b"\x01", b"\x80" * 9 + b"\x01", b"\xff" * 11])


def long_varint(number: int) -> bytes:
    """A varint of five bytes, which is longer than it must be."""
    return bytes([number >> 7 * place & 0x7F | 0x80 for place in range(4)]) + b"\0"


def overlong_field(number: int, content: bytes) -> bytes:
    """A field with tag and length in longer varints than needed."""
    return long_varint(number << 3 | 2) + long_varint(len(content)) + content


def image(content: bytes) -> bytes:
    """An Image."""
    return field_bytes(1, content)


def group(number: int, content: bytes) -> bytes:
    """A group: start, content, end."""
    return bytes([number << 3 | 3]) + content + bytes([number << 3 | 4])


IMAGES = st.one_of(
    ANY_BYTES.map(image),
    st.tuples(ANY_BYTES, ANY_BYTES).map(lambda pair: image(pair[0]) + image(pair[1])),
    ANY_BYTES.map(lambda content: image(content) + field_bytes(7, b"unknown")),
    st.just(b""),
    ANY_BYTES,
)
UNKNOWN = st.one_of(
    VARINTS.map(lambda value: b"\x48" + value),
    ANY_BYTES.map(lambda content: field_bytes(9, content)),
    st.just(b"\x4d" + bytes(4)),
    st.just(b"\x49" + bytes(8)),
    ANY_BYTES.map(lambda content: group(9, content)),
    st.just(b"\x02\x00"),
    st.just(b"\x12"),
    ANY_BYTES,
)
FIELDS = st.one_of(
    TEXT.map(lambda text: field_bytes(1, text)),
    IMAGES.map(lambda content: field_bytes(2, content)),
    IMAGES.map(lambda content: overlong_field(2, content)),
    TEXT.map(lambda text: field_bytes(3, text)),
    ANY_BYTES.map(lambda text: field_bytes(3, text)),
    TEXT.map(lambda text: field_bytes(4, text)),
)
PLAIN = st.tuples(TEXT, ANY_BYTES, st.lists(TEXT, max_size=3)).map(
    lambda parts: (
        field_bytes(1, parts[0]) + field_bytes(2, image(parts[1])) + b"".join(field_bytes(3, text) for text in parts[2])
    )
)
REQUESTS = st.one_of(
    PLAIN,
    st.lists(FIELDS, max_size=6).map(b"".join),
    st.lists(st.one_of(FIELDS, UNKNOWN), max_size=6).map(b"".join),
    st.tuples(PLAIN, st.integers(0, 40)).map(lambda pair: pair[0][: pair[1]]),
    ANY_BYTES,
)
ITEMS = st.one_of(
    st.tuples(TEXT, REQUESTS).map(lambda pair: field_bytes(1, pair[0]) + field_bytes(2, pair[1])),
    REQUESTS.map(lambda request: field_bytes(2, request)),
    st.tuples(REQUESTS, REQUESTS).map(lambda pair: field_bytes(2, pair[0]) + field_bytes(2, pair[1])),
    st.tuples(ANY_BYTES, REQUESTS).map(lambda pair: field_bytes(2, pair[1]) + field_bytes(1, pair[0])),
    st.tuples(ANY_BYTES, UNKNOWN).map(b"".join),
)
MESSAGES = st.lists(st.one_of(ITEMS.map(lambda item: field_bytes(1, item)), UNKNOWN), max_size=4).map(b"".join)


def by_protobuf(request: pb.PredictRequest) -> Parsed:
    """What protobuf alone makes of a request."""
    has_image = request.image.WhichOneof("source") is not None
    return request.model, tuple(request.statements), request.premise, request.image.content if has_image else None


def ours(parsed: entailment.ParsedRequest) -> Parsed:
    """The same of ours."""
    fields, picture = parsed.fields, parsed.image
    assert not fields.HasField("image")
    return fields.model, tuple(fields.statements), fields.premise, None if picture is None else bytes(picture)


PICTURE = field_bytes(2, image(b"1"))
ODD = {
    "an ordinary one": field_bytes(1, b"m") + PICTURE + field_bytes(3, b"a"),
    "two pictures": PICTURE + field_bytes(2, image(b"2")),
    "two contents": field_bytes(2, image(b"1") + image(b"2")),
    "an unknown field in the image": field_bytes(2, field_bytes(7, b"unknown")),
    "an unknown field beside the content": field_bytes(2, image(b"1") + b"\x38\x01"),
    "an unknown number before": b"\x48" + bytes([len(PICTURE)]) + PICTURE + field_bytes(2, image(b"2")),
    "a group that looks like a length": group(9, (b"\x0d" + bytes(4)) * 2 + b"\x08\x01\x08\x01" + PICTURE),
    "a picture in a group": group(9, PICTURE),
    "a group that is not closed": b"\x4b" + PICTURE,
    "a content longer than its image": field_bytes(2, b"\x0a\x05a") + field_bytes(3, b"abcdef"),
    "a picture cut off": PICTURE[:-1],
    "an empty picture": field_bytes(2, image(b"")),
    "a picture before text that is not UTF-8": PICTURE + field_bytes(3, b"\xff"),
    "long varints": overlong_field(2, overlong_field(1, b"1")) + overlong_field(3, b"a"),
}


def check_request(raw: bytes) -> None:
    """Compare our parser with protobuf."""
    try:
        expected = by_protobuf(convert.parse(pb.PredictRequest, raw))
    except InputRefused as error:
        with pytest.raises(InputRefused, match=str(error)[:30]):
            entailment.parse_request(raw)
    else:
        assert ours(entailment.parse_request(raw)) == expected


def check_items(raw: bytes) -> None:
    """The same for a stream message."""
    try:
        message = convert.parse(pb.StreamPredictRequest, raw)
    except InputRefused:
        message = pb.StreamPredictRequest()
    if not message.items:
        with pytest.raises(InputRefused):
            entailment.parse_items(raw)
        return
    found = [(item_id, ours(request)) for item_id, request in entailment.parse_items(raw)]
    assert found == [(item.item_id, by_protobuf(item.request)) for item in message.items]


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD.keys())
def test_an_odd_request_is_parsed_as_by_protobuf(raw: bytes) -> None:
    """Alone, as an item, and beside another item."""
    check_request(raw)
    item_id, request = field_bytes(1, b"id"), field_bytes(2, raw)
    item = field_bytes(1, item_id + request)
    for odd in (item, item + item, item + raw, raw + item):
        check_items(odd)
    for odd in (request + item_id, item_id + request + request, item_id + item_id + request, request):
        check_items(field_bytes(1, odd))


@given(REQUESTS)
@settings(max_examples=300, deadline=None)
def test_a_request_is_parsed_as_by_protobuf(raw: bytes) -> None:
    """Whatever the bytes are: repeated and unknown fields, groups, long varints, truncated, not UTF-8."""
    check_request(raw)


@given(MESSAGES)
@settings(max_examples=300, deadline=None)
def test_a_stream_message_is_parsed_as_by_protobuf(raw: bytes) -> None:
    """The same for messages with items."""
    check_items(raw)


def held_by(parsed: entailment.ParsedRequest) -> int:
    """The bytes that a picture keeps in memory."""
    assert parsed.image is not None
    return len(cast("bytes", parsed.image.obj))


def test_the_picture_of_an_ordinary_request_is_a_view_of_its_message() -> None:
    """It is held once; in a message with several items each has its own, so that the message can be dropped."""
    size = 2 * entailment.MAX_REST_BYTES
    request = pb.PredictRequest(model="m", image=pb.Image(content=bytes(size)), statements=["a"] * 32, premise="p")
    raw = request.SerializeToString()
    item = pb.StreamItem(item_id="1", request=request)
    one = pb.StreamPredictRequest(items=[item]).SerializeToString()
    two = pb.StreamPredictRequest(items=[item, item]).SerializeToString()

    assert held_by(entailment.parse_request(raw)) == len(raw)
    assert [held_by(parsed) for _, parsed in entailment.parse_items(one)] == [len(one)]
    assert [held_by(parsed) for _, parsed in entailment.parse_items(two)] == [size, size]


def test_many_empty_fields_are_left_to_protobuf() -> None:
    """A message of a million empty statements does not stop the event loop."""
    picture = field_bytes(2, image(b"1"))

    assert entailment.find_picture(b"\x1a\x00" * 63 + picture, 0, 126 + len(picture)) is not None
    assert entailment.find_picture(b"\x1a\x00" * 64 + picture, 0, 128 + len(picture)) is None
