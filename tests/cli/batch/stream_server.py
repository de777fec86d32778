"""A server with streams that are answered, drained and broken as a test tells it."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from grpc_status import rpc_status

from common import errors
from hotslot.address.v1 import address_pb2, address_pb2_grpc
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc

REFUSALS: dict[str, errors.HotslotError] = {
    "blind": errors.InputRefused("no picture at all", reason="IMAGE_UNREADABLE", field="image.content"),
    "busy": errors.Overloaded("too much", retry_after_seconds=0.001),
    "nobody": errors.NotFound("no model 'nobody' here", reason="MODEL_UNKNOWN", field="model"),
}


class StreamServer:
    """Answers every item "yes"; a statement that begins with a word of REFUSALS is refused.

    Attributes:
        drain_after: each stream ends as by a server that drains, with unanswered items, after so many; 0: never.
        toxic: a statement that breaks the stream which carries it; empty: none.
        refusals_left: how often "busy" is refused before it is answered.
    """

    def __init__(self) -> None:
        self.revision = "v1.0.0"
        self.drain_after = 0
        self.toxic = ""
        self.refusals_left = 0
        self.hold: threading.Event | None = None  # answers wait for it …
        self.hold_at = 0  # … after so many
        self.total = 0  # answers
        self.answered: Counter[str] = Counter()  # by statement or address
        self.streams = self.calls = 0
        self.most_out = 0  # items that a stream had sent without an answer
        self.metadata: list[dict[str, Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        entailment_pb2_grpc.add_EntailmentServiceServicer_to_server(_Entailment(self), self._server)
        address_pb2_grpc.add_AddressTaggingServiceServicer_to_server(_Tagging(self), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """End all calls."""
        if self.hold is not None:
            self.hold.set()
        self._server.stop(None).wait()

    def error_of(self, text: str) -> errors.HotslotError | None:
        """Why a text is refused; None if it is answered."""
        word = text.split(maxsplit=1)[0]
        if word == "busy":
            self.refusals_left -= 1
            return REFUSALS["busy"] if self.refusals_left >= 0 else None
        return REFUSALS.get(word)

    def play(self, requests: Any, context: Any, kind: Any, answer: Any, text_of: Any) -> Iterator[Any]:  # noqa: ANN401
        """One stream."""
        self.streams += 1
        self.metadata.append(dict(context.invocation_metadata()))
        answered = 0
        for message in requests:
            self.most_out = max(self.most_out, len(message.items))
            for item in message.items:
                text = text_of(item.request)
                if self.toxic and self.toxic in text:
                    context.abort(grpc.StatusCode.INTERNAL, "broken")
                if self.drain_after and answered == self.drain_after:
                    status = errors.to_status(errors.NotReady("the server stops", reason="DRAINING"))
                    context.abort_with_status(rpc_status.to_status(status))
                if self.hold is not None and self.total >= self.hold_at:
                    self.hold.wait(20)
                error = self.error_of(text)
                if error is None:
                    self.answered[text] += 1
                    result = kind.StreamResult(item_id=item.item_id, response=answer(item.request))
                else:
                    result = kind.StreamResult(item_id=item.item_id, error=errors.to_status(error))
                yield kind.StreamPredictResponse(results=[result])
                answered += 1
                self.total += 1

    def predict(self, request: Any, context: Any, answer: Any, text_of: Any) -> Any:  # noqa: ANN401
        """One call."""
        self.calls += 1
        error = self.error_of(text_of(request))
        if error is not None:
            context.abort_with_status(rpc_status.to_status(errors.to_status(error)))
        self.answered[text_of(request)] += 1
        return answer(request)

    def origin(self) -> dict[str, str]:
        """What answers say of their model."""
        return {"model": "shapes", "revision": self.revision, "digest": "sha256:" + "0" * 64, "device": "cpu"}


class _Entailment(entailment_pb2_grpc.EntailmentServiceServicer):
    def __init__(self, world: StreamServer) -> None:
        self._world = world

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401
        return self._world.predict(request, context, self._answer, lambda one: one.statements[0])

    def StreamPredict(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802, ANN401
        return self._world.play(
            request_iterator, context, entailment_pb2, self._answer, lambda request: request.statements[0]
        )

    def _answer(self, request: entailment_pb2.PredictRequest) -> entailment_pb2.PredictResponse:
        response = entailment_pb2.PredictResponse(served_by=entailment_pb2.ServedBy(**self._world.origin()))
        for _ in request.statements:
            scores = entailment_pb2.LabelScores(yes=0.5, no=0.25, maybe=0.25)
            response.results.add(label=entailment_pb2.LABEL_YES, scores=scores)
        return response


class _Tagging(address_pb2_grpc.AddressTaggingServiceServicer):
    def __init__(self, world: StreamServer) -> None:
        self._world = world

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401
        return self._world.predict(request, context, self._answer, lambda one: one.addresses[0])

    def StreamPredict(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802, ANN401
        return self._world.play(
            request_iterator, context, address_pb2, self._answer, lambda request: request.addresses[0]
        )

    def _answer(self, request: address_pb2.PredictRequest) -> address_pb2.PredictResponse:
        response = address_pb2.PredictResponse(served_by=address_pb2.ServedBy(**self._world.origin()))
        for text in request.addresses:
            result = response.results.add()
            result.spans.add(kind="prov", text=text[:3], start=0, end=3, start_byte=0, end_byte=9, probability=0.5)
            result.components["prov"] = text[:3]
        return response
