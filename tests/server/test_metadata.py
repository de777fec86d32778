"""Request ids, trace context and deadlines in call metadata."""

import itertools
import queue
import re
from typing import Any

import grpc
import pytest

from dev.harness import http2
from dev.harness.answers import question
from dev.harness.stack import DEADLINE_SECONDS, ENTAILMENT, Stack
from dev.harness.waiting import eventually
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of, status_refusal
from tests.stack.wire import one_item, results_of

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def echoed(stack: Stack, *metadata: tuple[str, str], statement: str = "a") -> dict[str, str]:
    """The ids in the initial and trailing metadata of a call."""
    asked: Any = stack.entailment.Predict.with_call
    _, call = asked(question(statement).request(), timeout=DEADLINE_SECONDS, metadata=metadata)
    return {**dict(call.trailing_metadata()), **dict(call.initial_metadata())}


def test_request_id_and_trace_are_echoed_and_logged(stack: Stack) -> None:
    """The caller's ids are in the initial metadata and in the log line."""
    found = echoed(stack, ("x-request-id", "order-4711/a"), ("traceparent", TRACE))

    assert (found["x-request-id"], found["traceparent"]) == ("order-4711/a", TRACE)
    line = stack.process.wait_event("call_ended", request_id="order-4711/a")
    assert (line["traceparent"], line["grpc_code"], line["revision"]) == (TRACE, "OK", "r1")


def test_a_call_without_an_id_gets_one(stack: Stack) -> None:
    """Each call gets a new request id; no trace is generated."""
    first, second = echoed(stack), echoed(stack)

    assert re.fullmatch(r"[0-9a-f]{32}", first["x-request-id"])
    assert first["x-request-id"] != second["x-request-id"]
    assert "traceparent" not in first


@pytest.mark.parametrize("request_id", ["", " ", "has a space", "x" * 129], ids=["empty", "blank", "space", "long"])
def test_an_invalid_request_id_is_replaced(stack: Stack, request_id: str) -> None:
    """The call is answered with a generated id."""
    found = echoed(stack, ("x-request-id", request_id))

    assert re.fullmatch(r"[0-9a-f]{32}", found["x-request-id"])


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "no",
        TRACE.upper(),
        TRACE + "-00",
        TRACE[:-1],
        f"ff{TRACE[2:]}",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
    ],
)
def test_an_invalid_traceparent_is_dropped(stack: Stack, trace: str) -> None:
    """It is not passed on."""
    assert "traceparent" not in echoed(stack, ("traceparent", trace))


def predict_with(stack: Stack, *values: str, key: str = "x-model-version") -> str:
    """The revision that answers a call with these values of a key, or the reason of its refusal."""
    metadata = tuple((key, value) for value in values)
    try:
        asked = question("a").request()
        return stack.entailment.Predict(asked, timeout=DEADLINE_SECONDS, metadata=metadata).served_by.revision
    except grpc.RpcError as error:
        return refusal_of(error).reason


@pytest.mark.fault("T6")
def test_a_version_is_one_value_and_nothing_is_guessed(stack: Stack) -> None:
    """Several different ones are a list, as proxies join them, and no version."""
    good: list[tuple[str, ...]] = [(), ("",), ("stable",), (" stable ",), ("stable", "stable", ""), ("r1",)]
    bad: list[tuple[str, ...]] = [
        ("Stable",),
        ("stable,r1",),
        ("stable", "r1"),
        ("canary",),
        ("r1" * 2000,),
        ("sha256:",),
    ]

    assert [predict_with(stack, *values) for values in good] == ["r1"] * len(good)
    assert [predict_with(stack, *values) for values in bad] == ["VERSION_UNKNOWN"] * len(bad)


def test_any_routing_key_is_answered(stack: Stack) -> None:
    """Empty, long, several, or in the form for bytes, which is another key."""
    keys: list[tuple[str, ...]] = [("",), (" ",), ("a b",), ("k" * 4000,), ("one", "other")]
    assert [predict_with(stack, *values, key="x-routing-key") for values in keys] == ["r1"] * len(keys)
    for name in ("x-routing-key-bin", "x-model-version-bin"):
        metadata: Any = ((name, b"\x00\xff"),)
        asked = question("a").request()
        answer = stack.entailment.Predict(asked, timeout=DEADLINE_SECONDS, metadata=metadata)
        assert answer.served_by.revision == "r1"


def test_a_refused_call_has_its_request_id(stack: Stack) -> None:
    """In the trailers and in the log; without headers, because a client sends no call again that has received some."""
    ids = (("x-request-id", "refused-1"), ("traceparent", TRACE))
    with pytest.raises(grpc.RpcError) as error:
        stack.entailment.Predict(question("").request(), timeout=DEADLINE_SECONDS, metadata=ids)

    call: Any = error.value
    found = dict(call.trailing_metadata())
    assert (found["x-request-id"], found["traceparent"]) == ("refused-1", TRACE)
    assert list(call.initial_metadata()) == []
    line = stack.process.wait_event("call_ended", request_id="refused-1")
    assert (line["grpc_code"], line["reason"]) == ("InvalidArgument", "STATEMENT_EMPTY")


def test_a_stream_has_its_request_id_before_its_first_answer(stack: Stack) -> None:
    """The initial metadata is sent at once."""
    messages: queue.Queue[Any] = queue.Queue()
    call = stack.entailment.StreamPredict(
        iter(messages.get, None), timeout=DEADLINE_SECONDS, metadata=(("x-request-id", "stream-1"),)
    )
    assert dict(call.initial_metadata())["x-request-id"] == "stream-1"

    messages.put(one_item("one", question().request()))
    messages.put(None)
    assert [result.item_id for answer in call for result in answer.results] == ["one"]
    line = stack.process.wait_event("call_ended", request_id="stream-1")
    assert (line["received"], line["sent"]) == (1, 1)


def send_with_timeout(stack: Stack, statement: str, timeout: str, request_id: str) -> None:
    """Send a call with a raw grpc-timeout header; waits for the first response of the server."""
    message = question(statement).request().SerializeToString()
    headers = {"grpc-timeout": timeout, "x-request-id": request_id}
    with http2.connect(stack.port) as way:
        way.sendall(http2.opening() + http2.call(f"/{ENTAILMENT}/Predict", message, headers))
        way.recv(1)
        stack.check(question())


@pytest.mark.fault("I15")
def test_a_deadline_of_zero_is_not_computed(stack: Stack) -> None:
    """The transport ends the call."""
    pid = stack.active_pid()
    for number in range(5):
        send_with_timeout(stack, "!crash", "0n", f"nothing-{number}")  # a device that saw it would show it
    stack.check(question())  # behind what was queued before it

    assert stack.active_pid() == pid


@pytest.mark.fault("I15")
def test_a_deadline_that_has_passed_on_arrival_is_refused(stack: Stack) -> None:
    """With DEADLINE_EXPIRED, before the request is queued."""
    numbers = itertools.count()

    def refused() -> list[dict[str, Any]]:
        send_with_timeout(stack, "late", "1n", f"past-{next(numbers)}")
        return stack.process.events("call_ended", grpc_code="DeadlineExceeded", reason="DEADLINE_EXPIRED")

    told = eventually(refused, what="one of them comes too late")
    assert all(event["request_id"].startswith("past-") for event in told)


@pytest.mark.fault("I15")
def test_a_deadline_that_is_too_short_is_refused_at_once(stack: Stack) -> None:
    """If the model needs longer, the call is refused before anything is computed."""
    stack.serve("r-slow", row_seconds=0.4)

    with pytest.raises(grpc.RpcError) as error:
        stack.predict(question(*(f"statement {number}" for number in range(32))), timeout=8.0)

    assert refusal_of(error.value).brief == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", ())
    assert stack.control.stats(stack.answers.digest_of("r-slow")).answered == 0


def test_a_call_without_a_deadline_gets_the_configured_maximum(make_stack: MakeStack) -> None:
    """Longer deadlines are shortened to it; it also applies to each item of a stream."""
    stack = make_stack(server={"max_deadline_seconds": 0.7})
    messages = iter([one_item("slow", question("!slow 1").request()), one_item("wrong", question("").request())])
    results = {result.item_id: result for result in results_of(stack.entailment.StreamPredict(messages))}

    assert status_refusal(results["slow"].error).brief == ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED", ())
    assert set(results) == {"slow", "wrong"}
    for timeout in (None, 50.0):
        with pytest.raises(grpc.RpcError) as error:
            stack.entailment.Predict(question("!slow 1").request(), timeout=timeout)
        assert refusal_of(error.value).brief == ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED", ())
