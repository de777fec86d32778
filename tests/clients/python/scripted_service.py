"""A server in this process whose calls go as a test says: refused, broken, drained, answered twice or never."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from hotslot.entailment.v1 import entailment_pb2 as pb

SERVICE = "hotslot.entailment.v1.EntailmentService"
LIMIT_SECONDS = 20.0
Code = grpc.StatusCode


def make_status(code: Code, reason: str = "", retry_seconds: float | None = None) -> status_pb2.Status:
    """A status as the real server makes it; without a reason, as a proxy does."""
    status = status_pb2.Status(code=code.value[0], message=reason or code.name)
    details: list[Any] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="hotslot"))
    if retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(1000 * retry_seconds))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def fail(context: grpc.ServicerContext, status: status_pb2.Status) -> None:
    """End a call with a status, its details and its push-back."""
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    retry = error_details_pb2.RetryInfo()
    if any(detail.Unpack(retry) for detail in status.details):
        trailers.append(("grpc-retry-pushback-ms", str(retry.retry_delay.ToMilliseconds())))
    context.set_trailing_metadata(tuple(trailers))
    context.abort(next(code for code in Code if code.value[0] == status.code), status.message)


def answer(request: pb.PredictRequest) -> pb.PredictResponse:
    """YES to every statement; the premise comes back as the node."""
    rows = [pb.StatementResult(label=pb.LABEL_YES, scores=pb.LabelScores(yes=1.0)) for _ in request.statements]
    return pb.PredictResponse(results=rows, served_by=pb.ServedBy(revision="r1", node=request.premise))


def answered(item: pb.StreamItem) -> pb.StreamResult:
    """The outcome of one item of a stream."""
    return pb.StreamResult(item_id=item.item_id, response=answer(item.request))


Stream = Callable[[Iterator[pb.StreamItem], "grpc.ServicerContext"], Iterator[list[pb.StreamResult]]]


def answer_all(items: Iterator[pb.StreamItem], _context: grpc.ServicerContext) -> Iterator[list[pb.StreamResult]]:
    """One message an item."""
    for item in items:
        yield [answered(item)]


def break_after(count: int, status: status_pb2.Status) -> Stream:
    """Answer so many items, read one more, then end."""

    def stream(items: Iterator[pb.StreamItem], context: grpc.ServicerContext) -> Iterator[list[pb.StreamResult]]:
        for _ in range(count):
            yield [answered(next(items))]
        next(items, None)
        fail(context, status)

    return stream


@dataclass
class Service:
    """What calls and streams do, in the order in which they arrive; the last goes for all that follow."""

    unary: list[status_pb2.Status | None] = field(default_factory=lambda: [None])  # None: answered
    streams: list[Stream] = field(default_factory=lambda: [answer_all])
    metadata: list[dict[str, Any]] = field(default_factory=list)  # of each call
    received: Counter[str] = field(default_factory=Counter)  # premises of the items of streams
    hang: threading.Event | None = None  # unary calls wait for it
    begun: threading.Event = field(default_factory=threading.Event)  # a unary call has arrived
    address: str = ""

    def predict(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """A unary call."""
        self._note(context)
        self.begun.set()
        if self.hang is not None:
            self.hang.wait(LIMIT_SECONDS)
        status = self.unary[min(len(self.metadata), len(self.unary)) - 1]
        if status is not None:
            fail(context, status)
        return answer(pb.PredictRequest.FromString(raw)).SerializeToString()

    def stream_predict(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """A stream."""
        self._note(context)
        stream = self.streams[min(len(self.metadata), len(self.streams)) - 1]
        for results in stream(self._items(messages), context):
            yield pb.StreamPredictResponse(results=results).SerializeToString()

    def _items(self, messages: Iterator[bytes]) -> Iterator[pb.StreamItem]:
        for raw in messages:
            for item in pb.StreamPredictRequest.FromString(raw).items:
                self.received[item.request.premise] += 1
                yield item

    def _note(self, context: grpc.ServicerContext) -> None:
        self.metadata.append(dict(cast("Any", context.invocation_metadata())))

    @contextlib.contextmanager
    def serve(self, address: str = "127.0.0.1:0") -> Iterator["Service"]:
        """Run it, without a health service: clients then take it for healthy."""
        with futures.ThreadPoolExecutor(16) as threads:
            server = grpc.server(threads, options=[("grpc.max_receive_message_length", 40 << 20)])
            methods: dict[str, Any] = {
                "Predict": grpc.unary_unary_rpc_method_handler(self.predict),
                "StreamPredict": grpc.stream_stream_rpc_method_handler(self.stream_predict),
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
            port = server.add_insecure_port(address)
            self.address = f"127.0.0.1:{port}"
            server.start()
            try:
                yield self
            finally:
                if self.hang is not None:
                    self.hang.set()
                server.stop(0).wait()
