"""What the tasks share of the conversion between protobuf messages and records. Pure; names a wrong field."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message

from common.errors import InputRefused
from inference.server.request import Prediction, ServedBy

M = TypeVar("M", bound=Message)

MAX_STREAM_ITEMS = 64
MAX_ITEM_ID_CHARS = 128


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
