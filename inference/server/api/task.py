"""The part of the public API that is different for each task."""

from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message

from common.engine_files import Task
from common.errors import HotslotError, to_status
from inference.server.request import Payload, Prediction
from inference.server.settings import TextRule


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of a request, and how its texts are read."""

    max_image_bytes: int
    max_statement_chars: int
    texts: TextRule = TextRule.AS_SEEN
    max_address_chars: int = 500


class TaskApi(Protocol):
    """The messages of one task's service. `Any` is its own record of a parsed request."""

    @property
    def task(self) -> Task:
        """The task."""
        ...

    @property
    def service(self) -> str:
        """Full name of the gRPC service."""
        ...

    @property
    def probe_field(self) -> str:
        """The field of ProbeSlotRequest.items and of ProbeOutcome.outcome."""
        ...

    @property
    def self_test(self) -> Payload:
        """Valid input for any model of the task."""
        ...

    @property
    def predict_response(self) -> type[Message]:
        """The answer of Predict."""
        ...

    @property
    def stream_response(self) -> type[Message]:
        """The messages that StreamPredict answers with; has `results`."""
        ...

    @property
    def stream_result(self) -> type[Message]:
        """One of these; has `item_id`, and `response` or `error`."""
        ...

    def parse_request(self, raw: bytes) -> Any:  # noqa: ANN401
        """Parse the message of a call.

        Raises:
            InputRefused: the bytes do not parse.
        """
        ...

    def parse_items(self, raw: bytes) -> list[tuple[str, Any]]:
        """Parse a stream message into item ids and requests.

        Raises:
            InputRefused: the bytes do not parse, or the number of items is wrong.
        """
        ...

    def wrap(self, message: Any) -> Any:  # noqa: ANN401
        """The record of a PredictRequest that is parsed already."""
        ...

    def model_of(self, request: Any) -> str:  # noqa: ANN401
        """The model that it names; may be empty."""
        ...

    def count_rows(self, request: Any, limits: InputLimits) -> int:  # noqa: ANN401
        """Device rows that it will cost, before it is checked; at least 1. What will be refused costs none."""
        ...

    def check(self, request: Any, limits: InputLimits) -> Payload:  # noqa: ANN401
        """Check all fields of a request except `model`, and convert it.

        Raises:
            InputRefused: names the first invalid field and the limit.
        """
        ...

    def build_response(self, prediction: Prediction) -> Any:  # noqa: ANN401
        """Convert a prediction."""
        ...

    def describe_input(self, payload: Any) -> dict[str, object]:  # noqa: ANN401  the task's own record
        """The log fields of an accepted call; never what the caller sent."""
        ...

    def describe_answer(self, prediction: Prediction) -> dict[str, object]:
        """The log fields of an answered call; never what the caller sent."""
        ...


def build_result(api: TaskApi, item_id: str, outcome: Prediction | HotslotError) -> Any:  # noqa: ANN401
    """Convert the outcome of one stream item."""
    make: Any = api.stream_result
    if isinstance(outcome, HotslotError):
        return make(item_id=item_id, error=to_status(outcome))
    return make(item_id=item_id, response=api.build_response(outcome))
