"""Messages as bytes, to send what generated code cannot."""

from collections.abc import Iterable, Iterator
from typing import Any

from dev.harness.stack import DEADLINE_SECONDS, ENTAILMENT, Stack
from hotslot.entailment.v1 import entailment_pb2 as pb

_Raw = Any  # grpc's own multi-callables, of bytes


def predict_raw(stack: Stack, raw: bytes) -> pb.PredictResponse:
    """A unary call with any bytes as its message."""
    call: _Raw = stack.channel.unary_unary(
        f"/{ENTAILMENT}/Predict", request_serializer=None, response_deserializer=pb.PredictResponse.FromString
    )
    response: pb.PredictResponse = call(raw, timeout=DEADLINE_SECONDS)
    return response


def stream_raw(
    stack: Stack, messages: Iterable[bytes], timeout: float = DEADLINE_SECONDS
) -> Iterator[pb.StreamPredictResponse]:
    """A stream with any bytes as its messages."""
    call: _Raw = stack.channel.stream_stream(
        f"/{ENTAILMENT}/StreamPredict",
        request_serializer=None,
        response_deserializer=pb.StreamPredictResponse.FromString,
    )
    answers: Iterator[pb.StreamPredictResponse] = call(iter(messages), timeout=timeout)
    return answers


def field_bytes(number: int, content: bytes) -> bytes:
    """One length-delimited field of a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def item_message(item_id: str, request: bytes) -> bytes:
    """A StreamPredictRequest with one item whose request may be any bytes."""
    return field_bytes(1, field_bytes(1, item_id.encode()) + field_bytes(2, request))


def one_item(item_id: str, request: pb.PredictRequest) -> pb.StreamPredictRequest:
    """A message with one item."""
    return pb.StreamPredictRequest(items=[pb.StreamItem(item_id=item_id, request=request)])


def results_of(answers: Iterable[pb.StreamPredictResponse]) -> list[pb.StreamResult]:
    """All results of a stream, in order of arrival."""
    return [result for answer in answers for result in answer.results]


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(0x80 | (number & 0x7F))
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
