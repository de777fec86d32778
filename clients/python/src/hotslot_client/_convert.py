"""Messages of the contracts ↔ the records of the package; statuses → exceptions."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import grpc

from hotslot_client import errors
from hotslot_client._protos import address, entailment, error_details, rpc_status
from hotslot_client.types import (
    AddressItem,
    AddressResult,
    AnswerT,
    EntailmentItem,
    ItemT,
    Label,
    Picture,
    Prediction,
    ServedBy,
    Span,
    StatementResult,
    Tagging,
    Timing,
)

_LABELS = {1: Label.YES, 2: Label.NO, 3: Label.MAYBE}
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_DETAILS_KEY, _REQUEST_ID_KEY = "grpc-status-details-bin", "x-request-id"


@dataclass(frozen=True)
class Task(Generic[ItemT, AnswerT]):
    """One service: its name, and its messages as bytes."""

    service: str
    build_request: Callable[[ItemT], Any]
    parse_answer: Callable[[ItemT, Any], AnswerT]
    response: type[Any]
    stream_response: type[Any]

    @property
    def unary_path(self) -> str:
        """Path of Predict."""
        return f"/{self.service}/Predict"

    @property
    def stream_path(self) -> str:
        """Path of StreamPredict."""
        return f"/{self.service}/StreamPredict"


def serialize(message: Any) -> bytes:  # noqa: ANN401  any message
    """The bytes of a message."""
    data: bytes = message.SerializeToString()
    return data


def join_items(items: Iterable[tuple[str, bytes]]) -> bytes:
    """A StreamPredictRequest of item ids and serialised requests, written without building its messages."""
    parts: list[bytes] = []
    for item_id, request in items:
        name = item_id.encode()
        head = b"\x0a" + _varint(len(name)) + name + b"\x12" + _varint(len(request))  # fields 1 and 2 of StreamItem
        parts += [b"\x0a", _varint(len(head) + len(request)), head, request]  # field 1 of StreamPredictRequest
    return b"".join(parts)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 1 << 7:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def read_picture(picture: Picture) -> bytes:
    """The bytes of a picture.

    Raises:
        OSError: its file cannot be read.
    """
    if isinstance(picture, str):
        raise TypeError("a picture is bytes or a path: pathlib.Path(...), not a string")
    if isinstance(picture, os.PathLike):
        with open(picture, "rb") as file:
            return file.read()
    return bytes(picture)


def _texts(texts: Sequence[str], name: str) -> Iterable[str]:
    if isinstance(texts, str):
        raise TypeError(f"{name} is a sequence of strings, not one string")
    return texts


def _entailment_request(item: EntailmentItem) -> entailment.PredictRequest:
    content = read_picture(item.picture)
    request = entailment.PredictRequest(
        model=item.model, statements=_texts(item.statements, "statements"), premise=item.premise
    )
    if content:
        request.image.content = content
    return request


def _prediction(item: EntailmentItem, response: entailment.PredictResponse) -> Prediction:
    results = tuple(
        StatementResult(text, _LABELS.get(row.label, Label.UNKNOWN), row.scores.yes, row.scores.no, row.scores.maybe)
        for text, row in zip(item.statements, response.results, strict=False)
    )
    return Prediction(results, _served_by(response), _timing(response))


def _address_request(item: AddressItem) -> address.PredictRequest:
    return address.PredictRequest(model=item.model, addresses=_texts(item.addresses, "addresses"))


def _tagging(item: AddressItem, response: address.PredictResponse) -> Tagging:
    results = tuple(
        AddressResult(text, tuple(_span(span) for span in row.spans), dict(row.components))
        for text, row in zip(item.addresses, response.results, strict=False)
    )
    return Tagging(results, _served_by(response), _timing(response))


def _span(span: address.Span) -> Span:
    return Span(span.kind, span.text, span.start, span.end, span.start_byte, span.end_byte, span.probability)


def _served_by(response: entailment.PredictResponse | address.PredictResponse) -> ServedBy:
    by = response.served_by
    return ServedBy(by.model, by.revision, by.digest, by.device, by.slot, by.node)


def _timing(response: entailment.PredictResponse | address.PredictResponse) -> Timing:
    timing = response.timing
    queued, prepared, computed = (
        part.seconds + part.nanos / 1e9 for part in (timing.queued, timing.prepared, timing.computed)
    )
    return Timing(queued, prepared, computed)


ENTAILMENT: Task[EntailmentItem, Prediction] = Task(
    "hotslot.entailment.v1.EntailmentService",
    _entailment_request,
    _prediction,
    entailment.PredictResponse,
    entailment.StreamPredictResponse,
)
ADDRESS: Task[AddressItem, Tagging] = Task(
    "hotslot.address.v1.AddressTaggingService",
    _address_request,
    _tagging,
    address.PredictResponse,
    address.StreamPredictResponse,
)


def error_from_status(status: rpc_status.Status, request_id: str = "") -> errors.HotslotError:
    """The exception for a google.rpc.Status: of an item, or in the trailers of a call."""
    code = _CODE_NAMES.get(status.code, "UNKNOWN")
    facts: dict[str, Any] = {}
    for detail in status.details:
        facts.update(_read_detail(detail.type_url.rpartition("/")[2], detail.value))
    kind = errors.CLASSES.get(code, errors.ServerFailed)
    return kind(status.message, code=code, request_id=request_id, **facts)


def _read_detail(name: str, value: bytes) -> Mapping[str, Any]:
    if name == "google.rpc.ErrorInfo":
        info = error_details.ErrorInfo.FromString(value)
        return {"reason": info.reason, "metadata": dict(info.metadata)}
    if name == "google.rpc.BadRequest":
        violations = error_details.BadRequest.FromString(value).field_violations
        return {"field": violations[0].field} if violations else {}
    if name == "google.rpc.RetryInfo":
        delay = error_details.RetryInfo.FromString(value).retry_delay
        return {"retry_after_seconds": delay.seconds + delay.nanos / 1e9}
    if name == "google.rpc.ResourceInfo":
        resource = error_details.ResourceInfo.FromString(value)
        return {"resource": (resource.resource_type, resource.resource_name)}
    return {}


def error_from_call(
    code: str, details: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> errors.HotslotError:
    """The exception for a failed call."""
    found = {str(key): value for key, value in trailers or ()}
    request_id, packed = str(found.get(_REQUEST_ID_KEY, "")), found.get(_DETAILS_KEY)
    if isinstance(packed, bytes):
        try:
            status = rpc_status.Status.FromString(packed)
        except Exception:  # noqa: BLE001  of protobuf, whose class differs by version; what a proxy has damaged is left out
            status = rpc_status.Status()
        if status.code and _CODE_NAMES.get(status.code) == code:
            return error_from_status(status, request_id)
    kind = errors.CLASSES.get(code, errors.ServerFailed)
    return kind(details or "the call failed", code=code, request_id=request_id)
