"""Output of the command line: results go to standard output, everything else to standard error."""

import json
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from rich.console import Console
from rich.style import Style
from rich.text import Text

from hotslot.status.v1 import status_pb2

out: Final = Console(highlight=False)
err: Final = Console(stderr=True, highlight=False)

ABSENT = "–"
DIM = "dim"
GOOD, DOUBTFUL, BAD = "green", "yellow", "bold red"
LEVEL_STYLES = {
    status_pb2.HEALTH_LEVEL_OK: GOOD,
    status_pb2.HEALTH_LEVEL_DEGRADED: DOUBTFUL,
    status_pb2.HEALTH_LEVEL_FAILED: BAD,
}
_KIB, _STEP = 1024, 10


def print_json(row: object) -> None:
    """Print one JSON document on one line, without colour."""
    out.print(json.dumps(row, ensure_ascii=False), markup=False, soft_wrap=True)


def print_text(*parts: str | tuple[str, str]) -> None:
    """Print one line of text from pieces with or without a style; it is not wrapped and not read as markup."""
    out.print(text(*parts), soft_wrap=True)


def text(*parts: str | tuple[str, str | Style]) -> Text:
    """Text from pieces with or without a style."""
    return Text.assemble(*parts)


def size(count: int) -> str:
    """A number of bytes for display: "512 B", "1.5 KiB", "540 MiB"."""
    if count < _KIB:
        return f"{count} B"
    number = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        number /= _KIB
        if number < _KIB or unit == "TiB":
            break
    return f"{number:.1f} {unit}" if number < _STEP else f"{number:.0f} {unit}"


def seconds(count: float) -> str:
    """A duration for display: "12 ms", "3.4 s", "5 min", "2 h 10 min", "3 d 4 h"."""
    if count < 1:
        return f"{1000 * count:.1f} ms" if count < _STEP / 1000 else f"{1000 * count:.0f} ms"
    minutes, hours, days = count / 60, count / 3600, count / 86400
    if minutes < 1:
        return f"{count:.1f} s" if count < _STEP else f"{count:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    if days < 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(days)} d {int(hours) % 24} h"


def short(digest: str) -> str:
    """The first twelve hexadecimal digits of a digest, for display."""
    return digest.removeprefix("sha256:")[:12]


_DURATION = "google.protobuf.Duration"
_TIMESTAMP = "google.protobuf.Timestamp"


def plain(message: Message) -> dict[str, object]:
    """A message as a row for JSON; a duration becomes NAME_seconds, an absent message null."""
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
    """The name of an enum value without its prefix, in lower case; the number if this build does not know it."""
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
