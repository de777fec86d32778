"""Error families: the class says whose fault it is and what to do, the reason says it to machines."""

from collections.abc import Mapping
from typing import ClassVar

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2


class HotslotError(Exception):
    """Something that is told to whoever asked; never holds a path or a traceback.

    Attributes:
        reason: UPPER_SNAKE, at most 63 characters, stable.
        field: path of the caller's field that is wrong, for example "image.content"; empty if none is.
        retry_after_seconds: when the same call may succeed; None if time alone does not help.
        resource: type and name of what was not found, for example ("model", "ofa-large").
        metadata: facts about it for machines, for example {"needed_bytes": "1024"}.
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
    """What the caller sent is wrong; it will be wrong again."""

    default_reason = "MESSAGE_MALFORMED"


class NotFound(HotslotError):
    """What the caller named is not here."""

    default_reason = "MODEL_UNKNOWN"


class Overloaded(HotslotError):
    """The entrance is full; the same request may succeed later."""

    default_reason = "QUEUE_FULL"


class NotReady(HotslotError):
    """Nothing can answer now; another server can, or this one soon."""

    default_reason = "NOT_READY"


class DeadlineMissed(HotslotError):
    """The caller's time is not enough, or is over."""

    default_reason = "DEADLINE_EXPIRED"


class Conflict(HotslotError):
    """The world is not as the caller believed."""

    default_reason = "GENERATION_CONFLICT"


class Interrupted(HotslotError):
    """What was asked for was begun and given up; it may be asked for again."""

    default_reason = "LOAD_FAILED"


class NotBuilt(HotslotError):
    """This build cannot do it."""

    default_reason = "ENGINE_NOT_AVAILABLE"


class Failed(HotslotError):
    """Our fault: the engine, the runner or a bug."""

    default_reason = "INTERNAL"


DOMAIN = "hotslot"

CODES: dict[type[HotslotError], int] = {
    InputRefused: code_pb2.INVALID_ARGUMENT,
    NotFound: code_pb2.NOT_FOUND,
    Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    NotReady: code_pb2.UNAVAILABLE,
    DeadlineMissed: code_pb2.DEADLINE_EXCEEDED,
    Conflict: code_pb2.FAILED_PRECONDITION,
    Interrupted: code_pb2.ABORTED,
    NotBuilt: code_pb2.UNIMPLEMENTED,
    Failed: code_pb2.INTERNAL,
}


def to_status(error: HotslotError, *more: message.Message) -> status_pb2.Status:
    """Say an error in gRPC's words, with ErrorInfo and the other details that fit it.

    Args:
        error: what went wrong.
        more: further details, for example the true state behind a conflict.
    """
    status = status_pb2.Status(code=get_code(error), message=str(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[message.Message] = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error), reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_seconds)))
    if error.resource is not None:
        kind, name = error.resource
        details.append(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=str(error)))
    for detail in (*details, *more):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def get_code(error: HotslotError) -> int:
    """The gRPC code of an error, by the nearest class that the table holds."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return code_pb2.INTERNAL


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(int(seconds * 1000))
    return duration
