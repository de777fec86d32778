"""The messages of EntailmentService: statements about a picture. Pure.

A picture is held once: it stays in the bytes of its message, and only the other fields are parsed by protobuf, which
would copy it twice. This holds for messages as clients encode them, where each field is present once. Any other message
is parsed by protobuf as a whole, so that what is accepted does not depend on the encoding.
"""

import base64
from typing import Final

from common.engine_files import Task
from common.errors import InputRefused
from common.records import record
from hotslot.entailment.v1 import entailment_pb2
from inference.server.api.convert import (
    COUNTED_BYTES,
    MAX_STREAM_ITEMS,
    check_field_count,
    check_item_count,
    fill_origin,
    parse,
)
from inference.server.api.task import InputLimits
from inference.server.api.texts import read_text
from inference.server.request import EntailmentInput, Prediction
from inference.wire import MAX_FRAME_BYTES, EntailmentScores

MAX_STATEMENTS = 32
MAX_INPUT_BYTES = MAX_FRAME_BYTES - (4 << 10)  # of a picture and its texts: they go to the runner in one frame

_ONE, _TWO, _THREE, _FOUR = 0x0A, 0x12, 0x1A, 0x22  # tags of the length-delimited fields 1 to 4
_REQUEST_TAGS = (_ONE, _TWO, _THREE, _FOUR)  # model, image, statements, premise
MAX_REST_BYTES = 64 << 10  # of a message, beside a picture that is a view of it
_MAX_SCANNED_FIELDS = 64  # of a request; protobuf is faster with more
_MAX_LENGTH_BYTES = 5  # of the varint of a length
_VARINT_MORE = 0x80

_LABELS = {
    "yes": entailment_pb2.LABEL_YES,
    "no": entailment_pb2.LABEL_NO,
    "maybe": entailment_pb2.LABEL_MAYBE,
}
_LOGGED_LABELS = {label: entailment_pb2.Label.Name(number) for label, number in _LABELS.items()}
# 16 × 16 grey pixels: valid input for any picture model.
_PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAD0lEQVR42mNoQAMMI1sAAAUMgAHjM1mKAAAAAElFTkSuQmCC"
)


@record
class ParsedRequest:
    """A request and its picture."""

    fields: entailment_pb2.PredictRequest  # without `image`
    image: memoryview | None  # None: not given


def parse_request(raw: bytes) -> ParsedRequest:
    """Parse a request; the picture is a view of `raw` where that is possible.

    Raises:
        InputRefused: the bytes do not parse.
    """
    span = find_picture(raw, 0, len(raw))
    found = None if span is None else _parse_around(raw, 0, len(raw), span)
    return split_request(parse(entailment_pb2.PredictRequest, raw)) if found is None else found


def parse_items(raw: bytes) -> list[tuple[str, ParsedRequest]]:
    """Parse a stream message into item ids and requests.

    Raises:
        InputRefused: the bytes do not parse, or the number of items is wrong.
    """
    if len(raw) > COUNTED_BYTES:  # of all items together: each has less
        check_field_count(entailment_pb2.StreamPredictRequest, raw)
    spans = _find_items(raw)
    found = []
    for start, end, item_id, picture in spans:
        request = _parse_around(raw, start, end, picture)
        if request is None:
            spans = []
            break
        found.append((item_id, request))
    if spans:
        return found
    message = parse(entailment_pb2.StreamPredictRequest, raw)
    check_item_count(len(message.items))
    return [(item.item_id, split_request(item.request)) for item in message.items]


@record
class PictureSpan:
    """Where the picture of a request is in its message."""

    field: int  # index of the first byte of the field `image`
    content: int  # index of the first byte of the picture
    end: int  # index after both


def find_picture(raw: bytes, at: int, end: int) -> PictureSpan | None:
    """Find the first picture of an encoded request; None if only protobuf can say where it is. Pure."""
    for _ in range(_MAX_SCANNED_FIELDS):
        if at == end:
            return None
        tag, (body, stop) = raw[at], _find_body(raw, at + 1, end)
        if stop < 0 or tag not in _REQUEST_TAGS:
            return None
        if tag == _TWO:
            content, content_end = _find_body(raw, body + 1, stop) if raw[body : body + 1] == b"\x0a" else (-1, -1)
            return PictureSpan(at, content, stop) if content < content_end == stop else None
        at = stop
    return None


def check_request(parsed: ParsedRequest, limits: InputLimits) -> EntailmentInput:
    """Check all fields of a request except `model`, and convert it.

    Raises:
        InputRefused: names the first invalid field and the limit.
    """
    request, image = parsed.fields, parsed.image
    if image is None:
        raise InputRefused("image is required", reason="IMAGE_MISSING", field="image.content")
    if not image:
        raise InputRefused("image.content is empty", reason="IMAGE_MISSING", field="image.content")
    if len(image) > limits.max_image_bytes:
        raise InputRefused(
            f"image.content has {len(image)} bytes, limit {limits.max_image_bytes}",
            reason="IMAGE_TOO_LARGE",
            field="image.content",
        )
    count = len(request.statements)
    if not count:
        raise InputRefused("statements is empty, 1 to 32 are needed", reason="STATEMENTS_MISSING", field="statements")
    if count > MAX_STATEMENTS:
        raise InputRefused(
            f"statements has {count} entries, limit {MAX_STATEMENTS}", reason="STATEMENTS_TOO_MANY", field="statements"
        )
    statements = tuple(request.statements)
    read = EntailmentInput(
        image,
        tuple(_read_text(text, limits, f"statements[{place}]", "STATEMENT") for place, text in enumerate(statements)),
        _read_text(request.premise, limits, "premise", "PREMISE") if request.premise else "",
    )
    if len(image) > MAX_INPUT_BYTES // 2:  # the longest texts, 33 of 65,536 characters, have less than half
        _check_size(read)
    return read


def build_entailment_response(prediction: Prediction) -> entailment_pb2.PredictResponse:
    """Convert a prediction."""
    response = entailment_pb2.PredictResponse()
    fill_origin(response, prediction)
    for scores, label in zip(prediction.outcome, prediction.labels, strict=True):
        if not isinstance(scores, EntailmentScores):
            raise RuntimeError("the prediction is of another task")
        result = response.results.add(label=_LABELS[label])
        result.scores.yes, result.scores.no, result.scores.maybe = scores.yes, scores.no, scores.maybe
    return response


def _read_text(text: str, limits: InputLimits, field: str, kind: str) -> str:
    if not text:
        raise InputRefused(f"{field} is empty", reason=f"{kind}_EMPTY", field=field)
    if len(text) > limits.max_statement_chars:
        raise InputRefused(
            f"{field} has {len(text)} characters, limit {limits.max_statement_chars}",
            reason=f"{kind}_TOO_LONG",
            field=field,
        )
    return read_text(text, limits.texts, field, f"{kind}_EMPTY")


def _check_size(read: EntailmentInput) -> None:
    """Refuse what no frame holds: texts may take more bytes than in their message, as the model reads them."""
    size = len(read.image) + sum(len(text.encode()) for text in (*read.statements, read.premise))
    if size > MAX_INPUT_BYTES:
        raise InputRefused(
            f"image.content and texts have {size} bytes as they are read, limit {MAX_INPUT_BYTES}",
            reason="IMAGE_TOO_LARGE",
            field="image.content",
        )


def split_request(request: entailment_pb2.PredictRequest) -> ParsedRequest:
    """Take the picture out of a parsed request."""
    image = None if request.image.WhichOneof("source") is None else memoryview(request.image.content)
    request.ClearField("image")
    return ParsedRequest(request, image)


def _parse_around(raw: bytes, start: int, end: int, picture: PictureSpan) -> ParsedRequest | None:
    """Parse the fields beside the picture; None if there is a second picture: protobuf merges them.

    The picture is a view of the message, or of a copy if the message has much else: it would be kept in memory too.
    """
    fields = parse(entailment_pb2.PredictRequest, raw[start : picture.field] + raw[picture.end : end])
    if fields.HasField("image"):
        return None
    view = memoryview(raw)[picture.content : picture.end]
    is_alone = len(raw) - len(view) <= MAX_REST_BYTES
    return ParsedRequest(fields, view if is_alone else memoryview(bytes(view)))


def _find_items(raw: bytes) -> list[tuple[int, int, str, PictureSpan]]:
    """Start, end, id and picture of each item's request; none if only protobuf can say what the message contains."""
    found: list[tuple[int, int, str, PictureSpan]] = []
    at, end = 0, len(raw)
    while at < end:
        body, stop = _find_body(raw, at + 1, end)
        item = _find_item(raw, body, stop) if raw[at] == _ONE and stop >= 0 else None
        if item is None or len(found) == MAX_STREAM_ITEMS:
            return []
        found.append(item)
        at = stop
    return found


def _find_item(raw: bytes, at: int, end: int) -> tuple[int, int, str, PictureSpan] | None:
    """The same of one item: its id, if it has one, and its request, once and in this order."""
    item_id = b""
    if at < end and raw[at] == _ONE:
        body, at = _find_body(raw, at + 1, end)
        item_id = raw[body:at]
    if at < 0 or at >= end or raw[at] != _TWO:
        return None
    body, stop = _find_body(raw, at + 1, end)
    picture = find_picture(raw, body, stop) if stop == end else None
    if picture is None:
        return None
    try:
        return body, stop, item_id.decode(), picture
    except UnicodeDecodeError:
        return None


def _find_body(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """Start and end of what follows a length at this index; both are -1 if it does not fit before `end`."""
    if at < end and raw[at] < _VARINT_MORE:
        stop = at + 1 + raw[at]
        return (at + 1, stop) if stop <= end else (-1, -1)
    length = 0
    for place in range(at, min(at + _MAX_LENGTH_BYTES, end)):
        byte = raw[place]
        length |= (byte & ~_VARINT_MORE) << 7 * (place - at)
        if byte < _VARINT_MORE:
            start = place + 1
            return (start, start + length) if start + length <= end else (-1, -1)
    return -1, -1


class EntailmentApi:
    """Implements `TaskApi`."""

    task = Task.VISUAL_ENTAILMENT
    service = entailment_pb2.DESCRIPTOR.services_by_name["EntailmentService"].full_name
    probe_field = "entailment"
    self_test = EntailmentInput(image=_PICTURE, statements=("there are two birds.",), premise="")
    predict_response = entailment_pb2.PredictResponse
    stream_response = entailment_pb2.StreamPredictResponse
    stream_result = entailment_pb2.StreamResult
    parse_request = staticmethod(parse_request)
    parse_items = staticmethod(parse_items)
    wrap = staticmethod(split_request)
    check = staticmethod(check_request)
    build_response = staticmethod(build_entailment_response)

    def model_of(self, request: ParsedRequest) -> str:
        """See `TaskApi`."""
        return request.fields.model

    def count_rows(self, request: ParsedRequest, _limits: InputLimits) -> int:
        """See `TaskApi`."""
        count = len(request.fields.statements)
        return count if 0 < count <= MAX_STATEMENTS else 1

    def describe_input(self, payload: EntailmentInput) -> dict[str, object]:
        """See `TaskApi`."""
        return {
            "image_bytes": len(payload.image),
            "statements": len(payload.statements),
            "text_chars": sum(map(len, payload.statements)),
        }

    def describe_answer(self, prediction: Prediction) -> dict[str, object]:
        """See `TaskApi`."""
        label = prediction.labels[0]
        return {"label": _LOGGED_LABELS[label], "score": round(getattr(prediction.outcome[0], label), 4)}


ENTAILMENT: Final = EntailmentApi()
