"""Messages as plain rows for JSON: short enum words, seconds as numbers, whole numbers as numbers."""

from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

_DURATION = "google.protobuf.Duration"
_TIMESTAMP = "google.protobuf.Timestamp"


def plain(message: Message) -> dict[str, object]:
    """Every field under its own name; a duration under its name and `_seconds`, an absent message as null."""
    row: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if field.message_type is not None and field.message_type.full_name == _DURATION:
            name += "_seconds"
        value = getattr(message, field.name)
        if field.is_repeated:
            row[name] = [_value(field, one) for one in value]
        elif field.message_type is not None and not message.HasField(field.name):
            row[name] = None
        else:
            row[name] = _value(field, value)
    return row


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """The value's name without its prefix, in lower case; the number itself if this build does not know it."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name).removeprefix(prefix).lower()


def _value(field: Any, value: Any) -> object:  # noqa: ANN401  a field and what it holds
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if field.message_type is None:
        return value
    if field.message_type.full_name == _DURATION:
        return value.seconds + value.nanos / 1e9
    if field.message_type.full_name == _TIMESTAMP:
        return value.ToJsonString()
    return plain(value)
