"""An error as a client sees it: code, reason, field; and a check that it contains no internal details."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

_INSIDES = re.compile(rb"Traceback|\.py\b|File \"|/(?:work|tmp|root|home|usr|var|proc)/|0x[0-9a-f]{6,}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decoded error."""

    code: str  # "INVALID_ARGUMENT"
    message: str
    reason: str = ""  # of ErrorInfo; empty if there is none
    domain: str = ""
    fields: tuple[str, ...] = ()  # of BadRequest
    retry_seconds: float | None = None  # of RetryInfo
    resource: tuple[str, str] | None = None  # of ResourceInfo
    metadata: Mapping[str, str] = field(default_factory=dict)  # of ErrorInfo
    more: tuple[any_pb2.Any, ...] = field(default=(), repr=False)  # other details

    @property
    def brief(self) -> tuple[str, str, tuple[str, ...]]:
        """Code, reason and fields, for comparison with a table."""
        return self.code, self.reason, self.fields


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Decode a failed call; fails the test if the text shows a path or a traceback."""
    call: Any = error
    status = rpc_status.from_call(call)
    if status is None:
        status = status_pb2.Status(code=call.code().value[0], message=call.details())
    return status_refusal(status)


def status_refusal(status: status_pb2.Status) -> Refusal:
    """Decode a status; fails the test if the text shows a path or a traceback."""
    assert not _INSIDES.search(status.SerializeToString()), f"insides are shown: {status}"
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, resource = error_details_pb2.RetryInfo(), error_details_pb2.ResourceInfo()
    known = (info, bad, retry, resource)
    more = tuple(detail for detail in status.details if not any(detail.Unpack(kind) for kind in known))
    return Refusal(
        code=code_pb2.Code.Name(status.code),
        message=status.message,
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        fields=tuple(violation.field for violation in bad.field_violations),
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        resource=(resource.resource_type, resource.resource_name) if resource.resource_type else None,
        more=more,
    )
