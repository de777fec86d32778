"""Conversion between protobuf messages and records. Pure; an invalid field is refused here, by name."""

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message

from common.errors import InputRefused
from hotslot.entailment.v1 import entailment_pb2
from inference.server.request import EntailmentInput, Prediction, ServedBy

M = TypeVar("M", bound=Message)

MAX_STATEMENTS = 32
MAX_STREAM_ITEMS = 64
MAX_ITEM_ID_CHARS = 128

_LABELS = {
    "yes": entailment_pb2.LABEL_YES,
    "no": entailment_pb2.LABEL_NO,
    "maybe": entailment_pb2.LABEL_MAYBE,
}


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of a request."""

    max_image_bytes: int
    max_statement_chars: int


def parse(kind: type[M], raw: bytes) -> M:
    """Parse a message of type `kind`.

    Raises:
        InputRefused: the bytes do not parse.
    """
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise malformed_error(kind.DESCRIPTOR.name) from error


def malformed_error(message: str) -> InputRefused:
    """The error for bytes that do not parse."""
    return InputRefused(
        f"the message is not a valid {message}, or a string in it is not UTF-8", reason="MESSAGE_MALFORMED"
    )


def parse_entailment(request: entailment_pb2.PredictRequest, limits: InputLimits) -> EntailmentInput:
    """Check all fields of a request except `model`, and convert it.

    Raises:
        InputRefused: names the first invalid field and the limit.
    """
    if request.image.WhichOneof("source") is None:
        raise InputRefused("image is required", reason="IMAGE_MISSING", field="image.content")
    image = request.image.content
    if not image:
        raise InputRefused("image.content is empty", reason="IMAGE_MISSING", field="image.content")
    if len(image) > limits.max_image_bytes:
        raise InputRefused(
            f"image.content has {len(image)} bytes, limit {limits.max_image_bytes}",
            reason="IMAGE_TOO_LARGE",
            field="image.content",
        )
    statements = tuple(request.statements)
    if not statements:
        raise InputRefused("statements is empty, 1 to 32 are needed", reason="STATEMENTS_MISSING", field="statements")
    if len(statements) > MAX_STATEMENTS:
        raise InputRefused(
            f"statements has {len(statements)} entries, limit {MAX_STATEMENTS}",
            reason="STATEMENTS_TOO_MANY",
            field="statements",
        )
    for position, statement in enumerate(statements):
        _check_statement(statement, position, limits.max_statement_chars)
    if len(request.premise) > limits.max_statement_chars:
        raise InputRefused(
            f"premise has {len(request.premise)} characters, limit {limits.max_statement_chars}",
            reason="PREMISE_TOO_LONG",
            field="premise",
        )
    return EntailmentInput(image, statements, request.premise)


def check_item_id(item_id: str, *, is_duplicate: bool) -> None:
    """Check the id of a stream item.

    Raises:
        InputRefused: the id is missing, too long, or that of an unanswered item.
    """
    if not item_id:
        raise InputRefused("item_id is required", reason="ITEM_ID_MISSING", field="item_id")
    if len(item_id) > MAX_ITEM_ID_CHARS:
        raise InputRefused(
            f"item_id has {len(item_id)} characters, limit {MAX_ITEM_ID_CHARS}",
            reason="ITEM_ID_TOO_LONG",
            field="item_id",
        )
    if is_duplicate:
        raise InputRefused("item_id is already used by an unanswered item", reason="ITEM_ID_DUPLICATE", field="item_id")


def check_item_count(count: int) -> None:
    """Check the number of items of a stream message.

    Raises:
        InputRefused: there are none, or too many.
    """
    if count == 0:
        raise InputRefused("items is empty, 1 to 64 are needed", reason="ITEMS_MISSING", field="items")
    if count > MAX_STREAM_ITEMS:
        raise InputRefused(
            f"items has {count} entries, limit {MAX_STREAM_ITEMS}", reason="ITEMS_TOO_MANY", field="items"
        )


def build_entailment_response(prediction: Prediction) -> entailment_pb2.PredictResponse:
    """Convert a prediction."""
    response = entailment_pb2.PredictResponse(served_by=_served_by(prediction.served_by))
    for scores in prediction.outcome:
        result = response.results.add(label=_LABELS[scores.label])
        result.scores.yes, result.scores.no, result.scores.maybe = scores.yes, scores.no, scores.maybe
    timing = response.timing
    _set(timing.queued, prediction.queued_seconds)
    _set(timing.prepared, prediction.prepared_seconds)
    _set(timing.computed, prediction.computed_seconds)
    return response


def _check_statement(statement: str, position: int, limit: int) -> None:
    if not statement or statement.isspace():
        raise InputRefused(
            f"statements[{position}] is blank", reason="STATEMENT_EMPTY", field=f"statements[{position}]"
        )
    if len(statement) > limit:
        raise InputRefused(
            f"statements[{position}] has {len(statement)} characters, limit {limit}",
            reason="STATEMENT_TOO_LONG",
            field=f"statements[{position}]",
        )


def _served_by(served_by: ServedBy) -> entailment_pb2.ServedBy:
    return entailment_pb2.ServedBy(
        model=served_by.model,
        revision=served_by.revision,
        digest=served_by.digest,
        device=served_by.device,
        slot=served_by.slot,
        node=served_by.node,
    )


def _set(duration: duration_pb2.Duration, seconds: float) -> None:
    duration.seconds = int(seconds)
    duration.nanos = int((seconds - int(seconds)) * 1e9)
