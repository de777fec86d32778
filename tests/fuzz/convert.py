"""Target: the bytes of calls and stream messages, up to the checked request. Protobuf alone is the oracle."""

from google.protobuf.message import DecodeError

from common.errors import InputRefused
from hotslot.entailment.v1 import entailment_pb2
from inference.server.api import convert, entailment
from inference.server.api.task import InputLimits
from tests.fuzz.refusals import check_refusal
from tests.fuzz.requests import MAX_CHARS, MAX_IMAGE_BYTES, message_bytes, request_bytes
from tests.fuzz.source import Source

_LIMITS = InputLimits(MAX_IMAGE_BYTES, MAX_CHARS)


def check(data: bytes) -> None:
    """Parse and check one message."""
    source = Source(data)
    if source.is_one_in(3):
        _check_message(message_bytes(source))
    else:
        _check_call(request_bytes(source))


def _check_call(raw: bytes) -> None:
    try:
        expected = entailment_pb2.PredictRequest.FromString(raw)
    except DecodeError:
        expected = None
    try:
        parsed = entailment.parse_request(raw)
    except InputRefused as error:
        check_refusal(error)
        assert expected is None
        return
    assert expected is not None
    _check_request(parsed, expected)


def _check_message(raw: bytes) -> None:
    try:
        expected = entailment_pb2.StreamPredictRequest.FromString(raw)
    except DecodeError:
        expected = None
    try:
        items = entailment.parse_items(raw)
    except InputRefused as error:
        check_refusal(error)
        assert (error.reason == "MESSAGE_MALFORMED") == (expected is None)  # noqa: PT017  the oracle
        assert expected is None or not 1 <= len(expected.items) <= convert.MAX_STREAM_ITEMS
        return
    assert expected is not None
    assert [item_id for item_id, _ in items] == [item.item_id for item in expected.items]
    for (item_id, parsed), item in zip(items, expected.items, strict=True):
        try:
            convert.check_item_id(item_id, is_duplicate=False)
        except InputRefused as error:
            check_refusal(error)
        _check_request(parsed, item.request)


def _check_request(parsed: entailment.ParsedRequest, expected: entailment_pb2.PredictRequest) -> None:
    image = expected.image.content if expected.image.WhichOneof("source") else None
    assert (None if parsed.image is None else bytes(parsed.image)) == image
    expected.ClearField("image")
    assert parsed.fields == expected
    try:
        found = entailment.check_request(parsed, _LIMITS)
    except InputRefused as error:
        check_refusal(error)
        return
    assert bytes(found.image) == image
    assert 1 <= len(found.image) <= MAX_IMAGE_BYTES
    assert 1 <= len(found.statements) == len(expected.statements) <= entailment.MAX_STATEMENTS
    assert bool(found.premise) == bool(expected.premise)
    for text in (*found.statements, *([found.premise] if found.premise else [])):
        assert text.strip()
        assert not any(character.isspace() and character != " " for character in text)
