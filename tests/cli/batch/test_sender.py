"""What `hotslot batch` makes of the failures of calls."""

import grpc
from google.rpc import code_pb2, status_pb2

from cli.batch.sender import has_details, status_of

DETAILS = "grpc-status-details-bin"


def failure(details: bytes | None) -> grpc.aio.AioRpcError:
    """A call that has ended with INTERNAL."""
    trailers = grpc.aio.Metadata(*([(DETAILS, details)] if details is not None else []))
    return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), trailers, "broken")


def test_a_failure_keeps_its_code_whatever_its_details_are() -> None:
    """Details of another code, or that are no details, are those of a proxy in between."""
    contradicting = status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone").SerializeToString()

    for details in (None, contradicting, b"\xff no status"):
        assert not has_details(failure(details))
        found = status_of(failure(details))
        assert (found.code, found.message) == (code_pb2.INTERNAL, "broken")


def test_the_details_of_the_server_are_kept() -> None:
    """With all that they say."""
    said = status_pb2.Status(code=code_pb2.INTERNAL, message="broken")

    assert has_details(failure(said.SerializeToString()))
    assert status_of(failure(said.SerializeToString())) == said
