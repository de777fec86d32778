"""The one place that knows gRPC codes: error class → google.rpc.Status."""

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common import errors

DOMAIN = "hotslot"

CODES: dict[type[errors.HotslotError], int] = {
    errors.InputRefused: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.NotReady: code_pb2.UNAVAILABLE,
    errors.DeadlineMissed: code_pb2.DEADLINE_EXCEEDED,
    errors.Conflict: code_pb2.FAILED_PRECONDITION,
    errors.Interrupted: code_pb2.ABORTED,
    errors.NotBuilt: code_pb2.UNIMPLEMENTED,
    errors.Failed: code_pb2.INTERNAL,
}


def to_status(error: errors.HotslotError, *more: message.Message) -> status_pb2.Status:
    """Say an error in gRPC's words, with ErrorInfo and the other details that fit it.

    Args:
        error: what went wrong.
        more: further details, for example the true state behind a conflict.
    """
    status = status_pb2.Status(code=code_of(error), message=str(error))
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


def code_of(error: errors.HotslotError) -> int:
    """The gRPC code of an error, by the nearest class that the table holds."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return code_pb2.INTERNAL


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(int(seconds * 1000))
    return duration
