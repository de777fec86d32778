"""The messages of AddressTaggingService: addresses cut into their parts. Pure."""

from typing import Final

from common.engine_files import Task
from common.errors import InputRefused
from hotslot.address.v1 import address_pb2
from inference.server.api.convert import check_item_count, fill_origin, parse
from inference.server.api.task import InputLimits
from inference.server.api.texts import check_visible
from inference.server.request import AddressInput, Prediction
from inference.wire import AddressSpan, EntailmentScores, count_address_rows

MAX_ADDRESSES = 64


class AddressApi:
    """Implements `TaskApi`."""

    task = Task.ADDRESS_TAGGING
    service = address_pb2.DESCRIPTOR.services_by_name["AddressTaggingService"].full_name
    probe_field = "address"
    self_test = AddressInput(("浙江省杭州市余杭区五常街道文一西路969号",))
    predict_response = address_pb2.PredictResponse
    stream_response = address_pb2.StreamPredictResponse
    stream_result = address_pb2.StreamResult

    def parse_request(self, raw: bytes) -> address_pb2.PredictRequest:
        """See `TaskApi`."""
        return parse(address_pb2.PredictRequest, raw)

    def parse_items(self, raw: bytes) -> list[tuple[str, address_pb2.PredictRequest]]:
        """See `TaskApi`."""
        message = parse(address_pb2.StreamPredictRequest, raw)
        check_item_count(len(message.items))
        return [(item.item_id, item.request) for item in message.items]

    def wrap(self, message: address_pb2.PredictRequest) -> address_pb2.PredictRequest:
        """See `TaskApi`."""
        return message

    def model_of(self, request: address_pb2.PredictRequest) -> str:
        """See `TaskApi`."""
        return request.model

    def count_rows(self, request: address_pb2.PredictRequest, limits: InputLimits) -> int:
        """See `TaskApi`."""
        if len(request.addresses) > MAX_ADDRESSES:
            return 1
        fitting = (address for address in request.addresses if len(address) <= limits.max_address_chars)
        return max(1, sum(map(count_address_rows, fitting)))

    def check(self, request: address_pb2.PredictRequest, limits: InputLimits) -> AddressInput:
        """See `TaskApi`. The addresses stay as they are: places in the answer are those of the caller's text."""
        count = len(request.addresses)
        if not count:
            raise InputRefused("addresses is empty, 1 to 64 are needed", reason="ADDRESSES_MISSING", field="addresses")
        if count > MAX_ADDRESSES:
            raise InputRefused(
                f"addresses has {count} entries, limit {MAX_ADDRESSES}", reason="ADDRESSES_TOO_MANY", field="addresses"
            )
        addresses = tuple(request.addresses)
        for place, address in enumerate(addresses):
            _check_address(address, f"addresses[{place}]", limits.max_address_chars)
        return AddressInput(addresses)

    def build_response(self, prediction: Prediction) -> address_pb2.PredictResponse:
        """See `TaskApi`."""
        response = address_pb2.PredictResponse()
        fill_origin(response, prediction)
        for address, spans in zip(prediction.texts, prediction.outcome, strict=True):
            if isinstance(spans, EntailmentScores):
                raise RuntimeError("the prediction is of another task")
            _fill_result(response.results.add(), address, spans)
        return response

    def describe_input(self, payload: AddressInput) -> dict[str, object]:
        """See `TaskApi`."""
        return {"addresses": len(payload.addresses), "text_chars": sum(map(len, payload.addresses))}

    def describe_answer(self, prediction: Prediction) -> dict[str, object]:
        """See `TaskApi`."""
        return {"spans": len(prediction.labels)}


def _check_address(address: str, field: str, max_chars: int) -> None:
    if not address:
        raise InputRefused(f"{field} is empty", reason="ADDRESS_EMPTY", field=field)
    if len(address) > max_chars:
        message = f"{field} has {len(address)} characters, limit {max_chars}"
        raise InputRefused(message, reason="ADDRESS_TOO_LONG", field=field)
    check_visible(address, field, "ADDRESS_EMPTY")


def _fill_result(result: address_pb2.AddressResult, address: str, spans: tuple[AddressSpan, ...]) -> None:
    place, byte = 0, 0  # of the last span's end: spans are in reading order
    texts: dict[str, list[str]] = {}  # by kind
    for span in spans:
        byte += len(address[place : span.start].encode())
        text = address[span.start : span.end]
        size = len(text.encode())
        result.spans.add(
            kind=span.kind,
            text=text,
            start=span.start,
            end=span.end,
            start_byte=byte,
            end_byte=byte + size,
            probability=span.probability,
        )
        place, byte = span.end, byte + size
        texts.setdefault(span.kind, []).append(text)
    for kind, found in texts.items():
        result.components[kind] = found[0]
        result.all_components.add(kind=kind, texts=found)


ADDRESS: Final = AddressApi()
