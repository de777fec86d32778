"""A run with every outcome, unary and in streams, during loads and a trial: the metrics are the callers' own count."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from dev.harness.answers import question
from dev.harness.metrics import families_of, value_of
from dev.harness.scripted_engine import holding
from dev.harness.stack import DEADLINE_SECONDS, Stack
from dev.harness.waiting import eventually
from hotslot.entailment.v1 import entailment_pb2 as pb
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import Refusal, refusal_of, status_refusal
from tests.stack.wire import item_message, predict_raw, stream_raw

CPU = "cpu"
MAX_REQUESTS = 24
SHORT_SECONDS = 10.0
OUTCOMES = {
    "INVALID_ARGUMENT": "invalid",
    "NOT_FOUND": "invalid",
    "RESOURCE_EXHAUSTED": "refused",
    "UNAVAILABLE": "refused",
    "DEADLINE_EXCEEDED": "expired",
    "CANCELLED": "cancelled",
    "INTERNAL": "failed",
}
NO_MODEL = ("MESSAGE_MALFORMED", "ITEMS_MISSING", "MODEL_UNKNOWN", "ITEM_ID_MISSING", "ITEM_ID_DUPLICATE")
NOT_ACCEPTED = (*NO_MODEL, "STATEMENT_EMPTY", "IMAGE_MISSING", "QUEUE_FULL", "NOT_READY")


class Callers:
    """What the callers of one server have counted."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.items: Counter[tuple[str, ...]] = Counter()  # model, revision, device, outcome, reason
        self.answers: Counter[tuple[str, ...]] = Counter()  # model, revision, label
        self._lock = threading.Lock()

    def ask(self, *statements: str, on: str = "r1", raw: bytes | None = None, model: str = "") -> None:
        """Send a unary call, and count its outcome; `on` is the revision that fails it."""
        try:
            self.answered(predict_raw(self.stack, request(*statements, model=model) if raw is None else raw))
        except grpc.RpcError as error:
            self.refused(refusal_of(error), on)

    def send(self, messages: Iterable[bytes], on: str = "r1") -> None:
        """Send a stream to its end, and count the outcome of each item."""
        for response in stream_raw(self.stack, messages):
            for result in response.results:
                if result.HasField("error"):
                    self.refused(status_refusal(result.error), on)
                else:
                    self.answered(result.response)

    def answered(self, response: pb.PredictResponse) -> None:
        """Count an answer."""
        served = response.served_by
        with self._lock:
            self.items[served.model, served.revision, served.device, "answered", ""] += 1
            for row in response.results:
                label = pb.Label.Name(row.label).removeprefix("LABEL_").lower()
                self.answers[served.model, served.revision, label] += 1

    def refused(self, refusal: Refusal, on: str) -> None:
        """Count an error; one that the server did not accept has no revision."""
        reason = refusal.reason or {"DEADLINE_EXCEEDED": "DEADLINE_EXPIRED"}.get(refusal.code, refusal.code)
        model = "" if reason in NO_MODEL else "shapes"
        place = ("", "") if reason in NOT_ACCEPTED else (on, CPU)
        with self._lock:
            self.items[(model, *place, OUTCOMES[refusal.code], reason)] += 1

    def open(self, *statements: str, seconds: float = DEADLINE_SECONDS) -> Any:  # noqa: ANN401  grpc's future
        """A unary call that is not awaited."""
        predict: Any = self.stack.entailment.Predict
        return predict.future(question(*statements).request(), timeout=seconds)

    def finish(self, call: Any, on: str = "r1") -> None:  # noqa: ANN401  grpc's future
        """Await such a call, and count its outcome."""
        try:
            self.answered(call.result())
        except grpc.FutureCancelledError:
            self.refused(Refusal("CANCELLED", ""), on)
        except grpc.RpcError as error:
            self.refused(refusal_of(error), on)

    def end_streamed(self, call: Any, items: int, on: str = "r1") -> None:  # noqa: ANN401  grpc's call
        """Await the end of a stream none of whose items was answered."""
        with pytest.raises(grpc.RpcError):
            next(call)
        for _ in range(items):
            self.refused(Refusal(call.code().name, ""), on)


def request(*statements: str, model: str = "", image: bytes = b"") -> bytes:
    """A request as bytes."""
    return question(*statements, image=image).request(model).SerializeToString()


def unanswered(stack: Stack) -> float:
    """Accepted items without an outcome."""
    return value_of(stack, "hotslot_unanswered_requests")


def counted(stack: Stack, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """A counter as the metrics have it, by the values of its labels."""
    rows = [row for family in families_of(stack).values() for row in family.samples if row.name == name]
    return Counter({tuple(row.labels[label] for label in labels): int(row.value) for row in rows if row.value})


def send_wrong_and_failing(callers: Callers, on: str) -> None:
    """Good, malformed, invalid and failing requests, in both kinds of calls."""
    for _ in range(3):
        callers.ask("a", "b", "c")
    for statements in (("a", ""), ("!refuse",), ("!error",), ("!nan",), ("!oom",)):
        callers.ask(*statements, on=on)
    callers.ask("a", model="squares")
    callers.ask(raw=b"no protobuf")
    callers.ask(raw=pb.PredictRequest(statements=["a"]).SerializeToString())
    callers.ask(raw=request("a", image=b"!bad"), on=on)
    callers.send(
        [
            item_message("slow", request("!slow 0.2")),
            item_message("slow", request("the id is in use")),
            *(item_message(f"good {number}", request("a", "b")) for number in range(5)),
            item_message("", request("a")),
            item_message("blank", request(" ")),
            item_message("model", request("a", model="squares")),
            item_message("picture", request("a", image=b"!bad")),
            item_message("failing", request("!error")),
            b"no protobuf",
            b"",  # no items
        ],
        on,
    )


def fill(callers: Callers, held: Path) -> None:
    """More unary calls than the server accepts: those beyond are refused, and all others answered."""
    with holding(held):
        blocking = callers.open("!held")
        eventually(lambda: unanswered(callers.stack) == 1, what="the device computes")
        calls = [callers.open("waits") for _ in range(MAX_REQUESTS + 4)]
        eventually(lambda: sum(call.done() for call in calls) == 5, what="those beyond the limit are refused")
        assert unanswered(callers.stack) == MAX_REQUESTS
    for call in (blocking, *calls):
        callers.finish(call)


def cancel_and_expire(callers: Callers, held: Path) -> None:
    """While one item computes, others are cancelled, or wait in vain."""
    stack, is_over = callers.stack, threading.Event()
    messages = [item_message(f"{number}", request("waits")) for number in range(3)]
    with holding(held):
        blocking = callers.open("!held")
        eventually(lambda: unanswered(stack) == 1, what="the device computes")
        cancelled = [callers.open("waits") for _ in range(2)]
        cancelled_stream: Any = stream_raw(stack, hold_open(messages, is_over))
        eventually(lambda: unanswered(stack) == 6, what="those wait that are cancelled")
        expiring = [callers.open("waits", seconds=SHORT_SECONDS) for _ in range(2)]
        expiring_stream = stream_raw(stack, hold_open(messages, is_over), timeout=SHORT_SECONDS)
        eventually(lambda: unanswered(stack) == 11, what="all wait", limit=SHORT_SECONDS)
        for call in (*cancelled, cancelled_stream):
            call.cancel()
        eventually(lambda: unanswered(stack) <= 6, what="what was cancelled is gone")
        for call in cancelled:
            callers.finish(call)
        callers.end_streamed(cancelled_stream, 3)
        for call in expiring:
            callers.finish(call)
        callers.end_streamed(expiring_stream, 3)
        eventually(lambda: unanswered(stack) == 1, what="the server has noticed that it is too late, too")
    is_over.set()
    callers.finish(blocking)
    for _ in range(3):  # the held call has taught the server that a row takes seconds: it would refuse what waits
        callers.ask("quick again")


def hold_open(messages: list[bytes], is_over: threading.Event) -> Iterable[bytes]:
    """The messages of a stream that is not half-closed before the event."""
    yield from messages
    is_over.wait(DEADLINE_SECONDS)


def ask_until(callers: Callers, stop: threading.Event) -> None:
    """Good requests, one after the other, in unary calls and small streams."""
    while not stop.is_set():
        callers.ask("a", "b")
        callers.send([item_message(f"{number}", request("c")) for number in range(3)])


def beside_traffic(callers: Callers, act: Callable[[], None]) -> None:
    """Do something while two callers send good requests."""
    stop = threading.Event()
    threads = [threading.Thread(target=ask_until, args=(callers, stop)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        act()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def try_and_commit(callers: Callers) -> None:
    """A trial: what it fails is handed over; what both fail counts where it ended; then it is committed."""
    stack = callers.stack
    load_id = stack.control.trial(stack.bundle("r2").bundle_digest)
    for _ in range(4):
        callers.ask("!error@r2")
    callers.send([item_message("streamed", request("!nan@r2"))])
    callers.ask("!error", on="r1")
    callers.ask("!crash@r2")
    stack.control.commit(load_id)
    callers.ask("!error@r2", on="r2")


@pytest.mark.fault("L23")
def test_the_metrics_are_the_callers_own_count(make_stack: MakeStack, tmp_path: Path) -> None:
    """Item by item: model, revision, device, outcome and reason; and every answered statement by its label."""
    held = tmp_path / "held"
    server, runner = {"max_waiting_requests": MAX_REQUESTS}, {"min_timeout_seconds": 60.0}
    with holding(held):
        stack = make_stack(server=server, runner=runner, script={"held_by": str(held)}, until_ready=False)
        callers = Callers(stack)
        callers.ask("too early")
    stack.wait_ready()

    send_wrong_and_failing(callers, "r1")
    fill(callers, held)
    cancel_and_expire(callers, held)
    beside_traffic(callers, lambda: callers.ask("!crash"))
    stack.wait_calm()
    beside_traffic(callers, lambda: try_and_commit(callers))
    send_wrong_and_failing(callers, "r2")
    eventually(lambda: unanswered(stack) == 0, what="every item has its outcome")

    labels = ("model", "revision", "device", "outcome", "reason")
    assert counted(stack, "hotslot_items_total", *labels) == callers.items
    assert counted(stack, "hotslot_answers_total", "model", "revision", "label") == callers.answers
    assert {key[3] for key in callers.items} == {*OUTCOMES.values(), "answered"}
    assert {key[4] for key in callers.items} >= {"POISON_INPUT", "QUEUE_FULL", "NOT_READY", "ENGINE_FAILED", ""}
    handed = counted(stack, "hotslot_handovers_total", "revision", "reason")
    assert (handed["r2", "ENGINE_FAILED"], handed["r2", "NOT_FINITE"]) == (5, 1)
