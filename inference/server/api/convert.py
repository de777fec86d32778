"""What the tasks share of the conversion between protobuf messages and records. Pure; names a wrong field."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

from google.protobuf import duration_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from common.errors import InputRefused
from inference.server.request import Prediction, ServedBy

M = TypeVar("M", bound=Message)

MAX_STREAM_ITEMS = 64
MAX_ITEM_ID_CHARS = 128
# An empty field takes two bytes in a message, which may have 63 MiB, and fifty or more in memory. A message of 64 items
# of 64 addresses has 4,352 fields.
MAX_FIELDS = 8192
COUNTED_BYTES = 256 << 10  # of a smaller message protobuf makes some megabytes in some milliseconds, whatever is in it
MAX_PACKED_BYTES = 4 << 20  # of numbers that take one byte each, and eight in memory
_MAX_VARINT_BYTES, _MAX_TAG = 10, (1 << 32) - 1
_VARINT_MORE = 0x80
_PACKED_VARINTS = frozenset(
    (
        *(FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32),
        *(FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64),
        *(FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_ENUM),
    )
)
_TOO_MANY = {"items": "ITEMS_TOO_MANY", "addresses": "ADDRESSES_TOO_MANY", "statements": "STATEMENTS_TOO_MANY"}


def parse(kind: type[M], raw: bytes) -> M:
    """Parse a message of type `kind`.

    Raises:
        InputRefused: the bytes do not parse, or hold more than `check_field_count` allows.
    """
    if len(raw) > COUNTED_BYTES:
        check_field_count(kind, raw)
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise malformed_error(kind.DESCRIPTOR.name) from error


def check_field_count(kind: type[Message], raw: bytes) -> None:
    """Count the fields of a message and of those in it, before protobuf makes objects of them; takes some milliseconds.

    Raises:
        InputRefused: it has more than MAX_FIELDS, or MAX_PACKED_BYTES of packed numbers, or is malformed.
    """
    left, packed = MAX_FIELDS, MAX_PACKED_BYTES
    parts = [(cast("Descriptor", kind.DESCRIPTOR), 0, len(raw))]
    while parts:
        descriptor, at, end = parts.pop()
        fields = descriptor.fields_by_number
        while at < end:
            number, body, at = _read_field(raw, at, end)
            if at < 0:
                raise malformed_error(kind.DESCRIPTOR.name)
            field = fields.get(number)
            left -= 1
            if body >= 0 and field is not None:
                if field.message_type is not None:
                    parts.append((field.message_type, body, at))
                elif field.type in _PACKED_VARINTS:
                    packed -= at - body
            if left < 0:
                raise _too_many(number, field, f"a message may have {MAX_FIELDS} fields")
            if packed < 0:
                raise _too_many(number, field, f"a message may have {MAX_PACKED_BYTES} bytes of packed numbers")


def _read_field(raw: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Number of a field, start of its content if it has a length, else -1, and index after it: -1 if malformed."""
    tag, at = _read_varint(raw, at, end)
    body = -1
    match tag & 7:
        case 0:
            _, at = _read_varint(raw, at, end)
        case 1:
            at += 8
        case 2:
            size, body = _read_varint(raw, at, end)
            at = body + size
        case 3 | 4:  # a group begins or ends: its fields are counted as if they stood here
            pass
        case 5:
            at += 4
        case _:
            at = end + 1
    return tag >> 3, body, at if at <= end and tag <= _MAX_TAG else -1


def _read_varint(raw: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and the index after it; after one that is malformed, an index after `end`."""
    if at < end and raw[at] < _VARINT_MORE:
        return raw[at], at + 1
    number = 0
    for place in range(at, min(at + _MAX_VARINT_BYTES, end)):
        byte = raw[place]
        number |= (byte & ~_VARINT_MORE) << 7 * (place - at)
        if byte < _VARINT_MORE:
            return number, place + 1
    return 0, end + 1


def _too_many(number: int, field: FieldDescriptor | None, limit: str) -> InputRefused:
    name = f"field {number}" if field is None else field.name
    return InputRefused(
        f"{name} has too many entries: {limit}",
        reason=_TOO_MANY.get(name, "MESSAGE_MALFORMED"),
        field="" if field is None else name,
    )


def malformed_error(message: str) -> InputRefused:
    """The error for bytes that do not parse."""
    return InputRefused(
        f"the message is not a valid {message}, or a string in it is not UTF-8", reason="MESSAGE_MALFORMED"
    )


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
    """Check the number of items in a stream message.

    Raises:
        InputRefused: there are none or too many.
    """
    if count == 0:
        raise InputRefused("items is empty, 1 to 64 are needed", reason="ITEMS_MISSING", field="items")
    if count > MAX_STREAM_ITEMS:
        raise InputRefused(
            f"items has {count} entries, limit {MAX_STREAM_ITEMS}", reason="ITEMS_TOO_MANY", field="items"
        )


def fill_origin(response: Any, prediction: Prediction) -> None:  # noqa: ANN401  a response of any task
    """Set which model answered, and where the time went."""
    kind: Callable[..., Message] = type(response.served_by)
    response.served_by.CopyFrom(_served_by(kind, prediction.served_by))
    timing = response.timing
    _set(timing.queued, prediction.queued_seconds)
    _set(timing.prepared, prediction.prepared_seconds)
    _set(timing.computed, prediction.computed_seconds)


@lru_cache(maxsize=64)  # the same few for all answers
def _served_by(kind: Callable[..., Message], served_by: ServedBy) -> Message:
    return kind(
        model=served_by.model,
        revision=served_by.revision,
        digest=served_by.digest,
        device=served_by.device,
        slot=served_by.slot,
        node=served_by.node,
    )


def _set(duration: duration_pb2.Duration, seconds: float) -> None:
    whole = int(seconds)
    if whole:
        duration.seconds = whole
    duration.nanos = int((seconds - whole) * 1e9)
