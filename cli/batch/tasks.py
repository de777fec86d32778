"""What is different for each task: the request of a row, and the line of its answer."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

import grpc
from google.rpc import error_details_pb2, status_pb2

from cli.batch.sources import Row
from cli.batch.window import Failure
from cli.output import enum_word, plain
from common.engine_files import Task
from hotslot.address.v1 import address_pb2, address_pb2_grpc
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class BatchTask(Protocol):
    """The messages of one task. `Any` is the task's own message."""

    def open_stub(self, channel: grpc.aio.Channel) -> Any:  # noqa: ANN401
        """The client of the task's service."""
        ...

    def build_request(self, row: Row, picture: bytes, model: str) -> Any:  # noqa: ANN401
        """The request of a row."""
        ...

    def build_stream_request(self, items: list[tuple[str, Any]]) -> Any:  # noqa: ANN401
        """A message of several rows: their ids and requests."""
        ...

    def answer_of(self, row: Row, response: Any) -> dict[str, Any]:  # noqa: ANN401
        """The fields of an answered row's result line beside `describe_row`."""
        ...


class EntailmentBatch:
    """Statements about pictures."""

    def open_stub(self, channel: grpc.aio.Channel) -> Any:  # noqa: ANN401
        """See `BatchTask`."""
        return entailment_pb2_grpc.EntailmentServiceStub(channel)

    def build_request(self, row: Row, picture: bytes, model: str) -> entailment_pb2.PredictRequest:
        """See `BatchTask`."""
        image = entailment_pb2.Image(content=picture)
        return entailment_pb2.PredictRequest(model=model, image=image, statements=row.statements, premise=row.premise)

    def build_stream_request(self, items: list[tuple[str, Any]]) -> entailment_pb2.StreamPredictRequest:
        """See `BatchTask`."""
        message = entailment_pb2.StreamPredictRequest()
        for item_id, request in items:
            message.items.add(item_id=item_id, request=request)
        return message

    def answer_of(self, row: Row, response: entailment_pb2.PredictResponse) -> dict[str, Any]:
        """See `BatchTask`."""
        labels = entailment_pb2.Label.DESCRIPTOR
        results = [
            {"statement": statement, "label": enum_word(labels, result.label), "scores": plain(result.scores)}
            for statement, result in zip(row.statements, response.results, strict=True)
        ]
        return {"results": results, "served_by": plain(response.served_by)}


class AddressBatch:
    """Addresses cut into their parts."""

    def open_stub(self, channel: grpc.aio.Channel) -> Any:  # noqa: ANN401
        """See `BatchTask`."""
        return address_pb2_grpc.AddressTaggingServiceStub(channel)

    def build_request(self, row: Row, picture: bytes, model: str) -> address_pb2.PredictRequest:  # noqa: ARG002
        """See `BatchTask`."""
        return address_pb2.PredictRequest(model=model, addresses=[row.address])

    def build_stream_request(self, items: list[tuple[str, Any]]) -> address_pb2.StreamPredictRequest:
        """See `BatchTask`."""
        message = address_pb2.StreamPredictRequest()
        for item_id, request in items:
            message.items.add(item_id=item_id, request=request)
        return message

    def answer_of(self, row: Row, response: address_pb2.PredictResponse) -> dict[str, Any]:  # noqa: ARG002
        """See `BatchTask`."""
        (result,) = response.results
        return {
            "spans": [plain(span) for span in result.spans],
            "components": dict(result.components),
            "served_by": plain(response.served_by),
        }


BATCH_TASKS: Final[Mapping[Task, BatchTask]] = {
    Task.VISUAL_ENTAILMENT: EntailmentBatch(),
    Task.ADDRESS_TAGGING: AddressBatch(),
}


def describe_row(row: Row) -> dict[str, Any]:
    """The begin of a row's line: which row it is."""
    found: dict[str, Any] = {"row": row.key}
    if row.id:
        found["id"] = row.id
    if row.image_name:
        found["image"] = row.image_name
    if row.address:
        found["address"] = row.address
    return found


def describe_failure(failure: Failure) -> dict[str, Any]:
    """The fields of the result line of a row without an answer."""
    named = {"field": failure.field} if failure.field else {}
    return {"error": {"code": failure.code, "reason": failure.reason, "message": failure.message, **named}}


def read_failure(status: status_pb2.Status) -> Failure:
    """The failure in a google.rpc.Status."""
    info, wrong, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_delay = False
    for detail in status.details:
        with contextlib.suppress(ValueError):
            if not detail.Unpack(info) and not detail.Unpack(wrong):
                has_delay |= detail.Unpack(retry)
    return Failure(
        code=_CODES.get(status.code, str(status.code)),
        number=status.code,
        reason=info.reason or _CODES.get(status.code, "UNKNOWN"),
        message=status.message,
        field=wrong.field_violations[0].field if wrong.field_violations else "",
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds() if has_delay else None,
    )
