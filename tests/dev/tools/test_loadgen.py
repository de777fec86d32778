"""The load generator, against a plain gRPC server."""

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from dev.harness.loadgen import PLACEHOLDER, Group, numbered, play
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1.entailment_pb2_grpc import (
    EntailmentServiceServicer,
    add_EntailmentServiceServicer_to_server,
)


def refusal() -> status_pb2.Status:
    """A refusal with details."""
    details = [any_pb2.Any(), any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="hotslot"))
    details[1].Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=500_000_000)))
    return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full", details=details)


class Servicer(EntailmentServiceServicer):
    """Answers by the first statement: "refuse" and "wait" are commands; the first three items of a stream wait."""

    def __init__(self) -> None:
        self.callers: Counter[str] = Counter()
        self.pictures: list[bytes] = []
        self.most_outstanding = 0

    def Predict(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> pb.PredictResponse:  # noqa: N802
        """One call."""
        self.callers[str(dict(context.invocation_metadata()).get("x-caller", ""))] += 1
        self.pictures.append(request.image.content)
        if request.statements[0] == "refuse":
            details = rpc_status.to_status(refusal()).trailing_metadata
            context.set_trailing_metadata((*details, ("grpc-retry-pushback-ms", "500")))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if request.statements[0] == "wait":
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(10)
        return answer()

    def StreamPredict(  # noqa: N802
        self, request_iterator: Iterator[pb.StreamPredictRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamPredictResponse]:
        """Answers in threes; the second of each is refused."""
        waiting: queue.Queue[str] = queue.Queue()
        for message in request_iterator:
            for item in message.items:
                waiting.put(item.item_id)
            self.most_outstanding = max(self.most_outstanding, waiting.qsize())
            if waiting.qsize() == 3:
                yield self.outcomes(waiting)
        while waiting.qsize():
            yield self.outcomes(waiting)

    def outcomes(self, waiting: "queue.Queue[str]") -> pb.StreamPredictResponse:
        """What waits is answered, the second item is refused."""
        rows = []
        for number in range(waiting.qsize()):
            result = pb.StreamResult(item_id=waiting.get())
            if number == 1:
                result.error.CopyFrom(refusal())
            else:
                result.response.CopyFrom(answer())
            rows.append(result)
        return pb.StreamPredictResponse(results=rows)


def answer() -> pb.PredictResponse:
    """An answer of r1."""
    return pb.PredictResponse(
        results=[pb.StatementResult(label=pb.LABEL_YES)], served_by=pb.ServedBy(model="shapes", revision="r1")
    )


def request(*statements: str) -> pb.PredictRequest:
    """A request without a picture."""
    return pb.PredictRequest(statements=statements)


@pytest.fixture(scope="module")
def servicer() -> Servicer:
    """What the server does and has seen."""
    return Servicer()


@pytest.fixture(scope="module")
def address(servicer: Servicer) -> Iterator[str]:
    """Where it listens."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    add_EntailmentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(5)


@pytest.mark.usefixtures("go_tools")
def test_an_open_loop_calls_at_its_rate_and_records_every_end(tmp_path: Path, address: str, servicer: Servicer) -> None:
    """Answers, refusals with their details, calls over their deadline and cancelled ones; metadata is sent."""
    groups = [
        Group(
            "mixed", [request("a", "b"), request("refuse")], rate=100, arrivals="uniform", metadata={"x-caller": "one"}
        ),
        Group("late", [request("wait")], clients=1, deadline=0.2),
        Group("cancelled", [request("wait")], clients=1, cancel_share=1.0, cancel_after=0.1),
    ]

    played = play(address, groups, 0.5, tmp_path, connections=2)

    mixed = played.of("mixed")
    assert 0 < len(mixed) <= 50
    answers = [one for one in mixed if one.is_answer]
    refusals = [one for one in mixed if not one.is_answer]
    assert {(one.code, one.rows, one.revision) for one in answers} == {("OK", 2, "r1")}
    assert {(one.code, one.reason, one.retry, one.pushback) for one in refusals} == {
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 0.5, "500")
    }
    assert servicer.callers["one"] == len(mixed)
    assert {one.code for one in played.of("late")} == {"DEADLINE_EXCEEDED"}
    assert {one.code for one in played.of("cancelled")} == {"CANCELLED"}


@pytest.mark.usefixtures("go_tools")
def test_a_stream_keeps_its_window_outstanding(tmp_path: Path, address: str, servicer: Servicer) -> None:
    """Every item has an outcome, answer or refusal, the last ones after the end of the load."""
    group = Group("stream", [request("a")], mode="stream", clients=2, window=3, digest=True)
    leaving = Group("leaving", [request("a")], mode="stream", window=2, leave=True)

    played = play(address, [group, leaving], 0.3, tmp_path)

    codes = Counter(one.code for one in played.of("stream"))
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert abs(codes["OK"] - 2 * codes["RESOURCE_EXHAUSTED"]) <= 4
    assert played.of("leaving") == []
    assert {one.caller for one in played.outcomes} == {0, 1}
    assert len({one.digest for one in played.outcomes if one.is_answer}) == 1
    assert servicer.most_outstanding == 3


@pytest.mark.usefixtures("go_tools")
def test_each_request_can_have_a_picture_of_its_own(tmp_path: Path, address: str, servicer: Servicer) -> None:
    """By which a benchmark knows which requests an engine has computed."""
    asked = pb.PredictRequest(statements=["a"], image=pb.Image(content=b"before" + PLACEHOLDER + b"after"))

    played = play(address, [Group("unary", [asked], rate=50)], 0.2, tmp_path)

    sent = {numbered(asked.image.content, one.number) for one in played.outcomes}
    assert len(sent) == len(played.outcomes)
    assert sent <= set(servicer.pictures)
