"""What the error of a call, or of an item, says beside its code."""

import contextlib
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class StatusDetails:
    """An error in hotslot's own words."""

    sentence: str  # for people
    reason: str = ""  # for programs, for example "QUEUE_FULL"; empty if it has none
    field: str = ""  # of the request that is wrong; empty if none is


def find_status(call: Any) -> status_pb2.Status | None:  # noqa: ANN401  of either API of grpc
    """The google.rpc.Status of a failed call; None if it has none that is readable and of its code."""
    with contextlib.suppress(ValueError, DecodeError):
        status: status_pb2.Status | None = rpc_status.from_call(call)
        return status
    return None


def read_status(status: status_pb2.Status) -> StatusDetails:
    """The details of a google.rpc.Status; unknown ones are skipped."""
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(wrong)
    field = wrong.field_violations[0].field if wrong.field_violations else ""
    return StatusDetails(status.message, info.reason, field)
