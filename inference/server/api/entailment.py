"""The messages of EntailmentService: statements about a picture."""

import base64
from typing import Final

from common.engine_files import Task
from hotslot.entailment.v1 import entailment_pb2
from inference.server.api import convert
from inference.server.api.task import InputLimits
from inference.server.request import EntailmentInput, Prediction

# 16 × 16 grey pixels: valid input for any picture model.
_PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAD0lEQVR42mNoQAMMI1sAAAUMgAHjM1mKAAAAAElFTkSuQmCC"
)


class EntailmentApi:
    """Implements `TaskApi`."""

    task = Task.VISUAL_ENTAILMENT
    service = entailment_pb2.DESCRIPTOR.services_by_name["EntailmentService"].full_name
    probe_field = "entailment"
    self_test = EntailmentInput(image=_PICTURE, statements=("there are two birds.",), premise="")
    predict_response = entailment_pb2.PredictResponse
    stream_response = entailment_pb2.StreamPredictResponse
    stream_result = entailment_pb2.StreamResult

    def parse_request(self, raw: bytes) -> convert.ParsedRequest:
        """See `TaskApi`."""
        return convert.parse_request(raw)

    def parse_items(self, raw: bytes) -> list[tuple[str, convert.ParsedRequest]]:
        """See `TaskApi`."""
        return convert.parse_items(raw)

    def wrap(self, message: entailment_pb2.PredictRequest) -> convert.ParsedRequest:
        """See `TaskApi`."""
        return convert.split_request(message)

    def model_of(self, request: convert.ParsedRequest) -> str:
        """See `TaskApi`."""
        return request.fields.model

    def count_rows(self, request: convert.ParsedRequest) -> int:
        """See `TaskApi`."""
        return max(1, len(request.fields.statements))

    def check(self, request: convert.ParsedRequest, limits: InputLimits) -> EntailmentInput:
        """See `TaskApi`."""
        return convert.check_request(request, limits)

    def build_response(self, prediction: Prediction) -> entailment_pb2.PredictResponse:
        """See `TaskApi`."""
        return convert.build_entailment_response(prediction)

    def describe_input(self, payload: EntailmentInput) -> dict[str, object]:
        """See `TaskApi`."""
        return {
            "image_bytes": len(payload.image),
            "statements": len(payload.statements),
            "text_chars": sum(map(len, payload.statements)),
        }

    def describe_answer(self, response: entailment_pb2.PredictResponse) -> dict[str, object]:
        """See `TaskApi`."""
        first = response.results[0]
        return {
            "label": entailment_pb2.Label.Name(first.label),
            "score": round(max(first.scores.yes, first.scores.no, first.scores.maybe), 4),
        }


ENTAILMENT: Final = EntailmentApi()
