"""The messages of EntailmentService: statements about a picture."""

import base64
from typing import Final

from common.engine_files import Task
from hotslot.entailment.v1 import entailment_pb2
from inference.server.api import convert
from inference.server.request import EntailmentInput

# 16 × 16 grey pixels: valid input for any picture model.
_PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAD0lEQVR42mNoQAMMI1sAAAUMgAHjM1mKAAAAAElFTkSuQmCC"
)


_LABEL_NAMES = {number: name for name, number in entailment_pb2.Label.items()}


class EntailmentApi:
    """Implements `TaskApi`."""

    task = Task.VISUAL_ENTAILMENT
    service = entailment_pb2.DESCRIPTOR.services_by_name["EntailmentService"].full_name
    probe_field = "entailment"
    self_test = EntailmentInput(image=_PICTURE, statements=("there are two birds.",), premise="")
    predict_response = entailment_pb2.PredictResponse
    stream_response = entailment_pb2.StreamPredictResponse
    stream_result = entailment_pb2.StreamResult
    parse_request = staticmethod(convert.parse_request)
    parse_items = staticmethod(convert.parse_items)
    wrap = staticmethod(convert.split_request)
    check = staticmethod(convert.check_request)
    build_response = staticmethod(convert.build_entailment_response)

    def model_of(self, request: convert.ParsedRequest) -> str:
        """See `TaskApi`."""
        return request.fields.model

    def count_rows(self, request: convert.ParsedRequest) -> int:
        """See `TaskApi`."""
        return max(1, len(request.fields.statements))

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
            "label": _LABEL_NAMES[first.label],
            "score": round(max(first.scores.yes, first.scores.no, first.scores.maybe), 4),
        }


ENTAILMENT: Final = EntailmentApi()
