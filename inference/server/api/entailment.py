"""EntailmentService: one picture and its statements, alone or in a stream."""

from dataclasses import dataclass
from typing import Any

import grpc

from common.clock import Clock
from common.engine_files import Task
from common.errors import HotslotError, to_status
from hotslot.entailment.v1 import entailment_pb2
from inference.server.api import convert
from inference.server.api.interceptors import Context, current_call
from inference.server.api.stream import ItemStream, StreamRules
from inference.server.events import Emit, ItemEnded
from inference.server.model.models import Models
from inference.server.request import PendingRequest, Prediction
from inference.server.scheduling.admission import Drain

SERVICE = entailment_pb2.DESCRIPTOR.services_by_name["EntailmentService"].full_name


@dataclass(frozen=True, slots=True)
class PredictRules:
    """Limits of a call."""

    inputs: convert.InputLimits
    stream: StreamRules
    max_deadline_seconds: float


class EntailmentApi:
    """The handlers of EntailmentService. Requests come as bytes, so that what does not parse is answered by us."""

    def __init__(self, models: Models, rules: PredictRules, clock: Clock, emit: Emit, drain: Drain) -> None:
        self._models = models
        self._rules = rules
        self._clock = clock
        self._emit = emit
        self._drain = drain

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Predict": grpc.unary_unary_rpc_method_handler(
                    self.predict, None, entailment_pb2.PredictResponse.SerializeToString
                ),
                "StreamPredict": grpc.stream_stream_rpc_method_handler(
                    self.stream_predict, None, entailment_pb2.StreamPredictResponse.SerializeToString
                ),
            },
        )

    async def predict(self, raw: bytes, context: Context) -> entailment_pb2.PredictResponse:
        """Judge statements about one picture.

        Raises:
            HotslotError: as the contract says.
        """
        left = context.time_remaining()
        request = convert.parse(entailment_pb2.PredictRequest, raw)
        pending = self._begin(request, left)
        try:
            answer = await pending.outcome
        except HotslotError as error:
            self._tell(request.model, pending, error)
            raise
        finally:
            if not pending.outcome.done() or pending.outcome.cancelled():
                self.cancel_request(pending)
        self._tell(request.model, pending, answer)
        response = convert.entailment_response(answer)
        _note(request, response, answer)
        return response

    async def stream_predict(self, _requests: object, context: Context) -> None:
        """Judge a stream of items.

        Raises:
            NotReady: the server drains.
        """
        await ItemStream(context, self, self._rules.stream, self._drain).run()

    # What the stream machinery asks.

    def items_of(self, raw: bytes) -> list[tuple[str, entailment_pb2.PredictRequest]]:
        """Item ids and requests of a message."""
        message = convert.parse(entailment_pb2.StreamPredictRequest, raw)
        convert.check_item_count(len(message.items))
        return [(item.item_id, item.request) for item in message.items]

    def begin(
        self, item_id: str, request: entailment_pb2.PredictRequest, deadline_seconds: float | None
    ) -> PendingRequest:
        """Accept one item."""
        convert.check_item_id(item_id)
        pending = self._begin(request, deadline_seconds)
        model = request.model
        pending.outcome.add_done_callback(lambda future: self._tell_future(model, pending, future))
        return pending

    def cancel_request(self, pending: PendingRequest) -> None:
        """Nobody waits for a request any more."""
        for manager in self._models.list_of_task(Task.VISUAL_ENTAILMENT):
            manager.cancel_request(pending)

    def result_of(self, item_id: str, outcome: Prediction | HotslotError) -> entailment_pb2.StreamResult:
        """One outcome as the message of it."""
        if isinstance(outcome, HotslotError):
            return entailment_pb2.StreamResult(item_id=item_id, error=to_status(outcome))
        return entailment_pb2.StreamResult(item_id=item_id, response=convert.entailment_response(outcome))

    def response_of(self, results: list[entailment_pb2.StreamResult]) -> entailment_pb2.StreamPredictResponse:
        """Outcomes as one message."""
        return entailment_pb2.StreamPredictResponse(results=results)

    # Helpers.

    def _begin(self, request: entailment_pb2.PredictRequest, left: float | None) -> PendingRequest:
        manager = self._models.find_for_call(request.model, Task.VISUAL_ENTAILMENT)
        payload = convert.entailment_input(request, self._rules.inputs)
        longest = self._rules.max_deadline_seconds
        seconds = longest if left is None else min(left, longest)
        return manager.predict(payload, self._clock.monotonic() + seconds)

    def _tell_future(self, model: str, pending: PendingRequest, future: Any) -> None:  # noqa: ANN401  a future's own type
        if not future.cancelled():
            self._tell(model, pending, future.exception() or future.result())

    def _tell(self, model: str, pending: PendingRequest, result: Prediction | BaseException) -> None:
        seconds = self._clock.monotonic() - pending.accepted_at
        if isinstance(result, Prediction):
            served = result.served_by
            self._emit(
                ItemEnded(
                    model=served.model,
                    revision=served.revision,
                    outcome="OK",
                    seconds=seconds,
                    queued_seconds=result.queued_seconds,
                    prepared_seconds=result.prepared_seconds,
                    computed_seconds=result.computed_seconds,
                )
            )
            return
        reason = result.reason if isinstance(result, HotslotError) else "INTERNAL"
        self._emit(ItemEnded(model=model, revision="", outcome=reason, seconds=seconds))


def _note(request: entailment_pb2.PredictRequest, response: entailment_pb2.PredictResponse, answer: Prediction) -> None:
    """What one line of the log says of an answer; never the picture or the text."""
    first = response.results[0]
    current_call.get().fields.update(
        model=answer.served_by.model,
        revision=answer.served_by.revision,
        slot=answer.served_by.slot,
        device=answer.served_by.device,
        image_bytes=len(request.image.content),
        statements=len(request.statements),
        text_chars=sum(map(len, request.statements)),
        label=entailment_pb2.Label.Name(first.label),
        score=round(max(first.scores.yes, first.scores.no, first.scores.maybe), 4),
        queued_seconds=round(answer.queued_seconds, 6),
        computed_seconds=round(answer.computed_seconds, 6),
    )
