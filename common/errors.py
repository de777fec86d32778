"""Error classes, and the gRPC code of each; no other module maps errors to gRPC codes.

The class of an error shows its cause and what to do; `reason` is stable, for programs.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common import reasons


class HotslotError(Exception):
    """An error that is reported to the caller; contains no path and no traceback.

    Attributes:
        reason: UPPER_SNAKE, at most 63 characters, stable.
        field: path of the invalid request field, for example "image.content"; empty if none is.
        retry_after_seconds: when the same call may succeed; None if waiting does not help.
        resource: type and name of what was not found, for example ("model", "ofa-large").
        metadata: further facts for programs, for example {"needed_bytes": "1024"}.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after_seconds: float | None = None,
        resource: tuple[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.resource = resource
        self.metadata = dict(metadata or {})


class InputRefused(HotslotError):
    """The request is invalid; sending it again does not help."""

    default_reason = "MESSAGE_MALFORMED"


class Unauthenticated(HotslotError):
    """The call has no valid token; it succeeds with one."""

    default_reason = "TOKEN_MISSING"


class NotFound(HotslotError):
    """The named model or resource does not exist here."""

    default_reason = "MODEL_UNKNOWN"


class Overloaded(HotslotError):
    """A queue or limit is full; the same request may succeed later."""

    default_reason = "QUEUE_FULL"


class NotReady(HotslotError):
    """This server cannot answer now; another one may, or this one soon."""

    default_reason = "NOT_READY"


class DeadlineMissed(HotslotError):
    """The deadline has passed, or is too short for the request."""

    default_reason = reasons.DEADLINE_EXPIRED


class Conflict(HotslotError):
    """The state is not the one that the caller expected."""

    default_reason = "GENERATION_CONFLICT"


class Interrupted(HotslotError):
    """The operation was started and aborted; it may be repeated."""

    default_reason = "LOAD_FAILED"


class Failed(HotslotError):
    """An internal error: of the engine, the runner, or a bug."""

    default_reason = "INTERNAL"


DOMAIN = "hotslot"
# A status and its details are trailers of the call. gRPC replaces a status whose trailers exceed 8 KiB with
# RESOURCE_EXHAUSTED; a message is in them up to four times.
MAX_MESSAGE_CHARS = 300

CODES: dict[type[HotslotError], int] = {
    InputRefused: code_pb2.INVALID_ARGUMENT,
    Unauthenticated: code_pb2.UNAUTHENTICATED,
    NotFound: code_pb2.NOT_FOUND,
    Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    NotReady: code_pb2.UNAVAILABLE,
    DeadlineMissed: code_pb2.DEADLINE_EXCEEDED,
    Conflict: code_pb2.FAILED_PRECONDITION,
    Interrupted: code_pb2.ABORTED,
    Failed: code_pb2.INTERNAL,
}


def to_status(error: HotslotError, *more: message.Message) -> status_pb2.Status:
    """The google.rpc.Status of an error, with ErrorInfo and the other details that apply.

    Args:
        error: to convert.
        more: further details, for example the actual state for a conflict.
    """
    text = str(error)
    text = text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS - 1]}…"
    status = status_pb2.Status(code=get_code(error), message=text)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[message.Message] = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=text, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_seconds)))
    if error.resource is not None:
        kind, name = error.resource
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=text))
    for detail in (*details, *more):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def get_code(error: HotslotError) -> int:
    """The gRPC code of an error: that of its nearest class in CODES."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return code_pb2.INTERNAL


def to_milliseconds(seconds: float) -> int:
    """Milliseconds of a retry delay, rounded up: a caller must not come back too early."""
    return math.ceil(seconds * 1000)


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(to_milliseconds(seconds))
    return duration
