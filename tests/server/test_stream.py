"""Streams: exactly one outcome per item, in any order, with bounded memory."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from dev.harness.answers import Question, question, scores_of
from dev.harness.metrics import value_of
from dev.harness.scripted_engine import holding
from dev.harness.stack import DEADLINE_SECONDS, Stack
from dev.harness.waiting import eventually
from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.status.v1 import status_pb2
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of
from tests.stack.wire import one_item, results_of

LONG_SECONDS = 50.0


def batch(named: dict[str, Question]) -> pb.StreamPredictRequest:
    """A message with many items."""
    rows = [pb.StreamItem(item_id=name, request=asked.request()) for name, asked in named.items()]
    return pb.StreamPredictRequest(items=rows)


def assert_right(stack: Stack, named: dict[str, Question], results: list[pb.StreamResult]) -> None:
    """Each item has exactly one outcome, and it is the right answer."""
    assert Counter(result.item_id for result in results) == Counter(list(named))
    for result in results:
        revision = result.response.served_by.revision
        assert scores_of(result.response) == stack.answers.of(revision, named[result.item_id])


def test_batches_and_single_items_mix(stack: Stack) -> None:
    """A message is an item or a batch of up to 64; every item has its own answer."""
    named = {f"item {number}": question(f"statement {number}") for number in range(130)}
    names = list(named)
    messages = [batch({name: named[name] for name in names[:64]}), batch({names[64]: named[names[64]]})]
    messages += [batch({name: named[name] for name in names[65:128]}), batch({n: named[n] for n in names[128:]})]

    assert_right(stack, named, results_of(stack.entailment.StreamPredict(iter(messages), timeout=DEADLINE_SECONDS)))


def test_outcomes_are_written_as_they_are_ready(stack: Stack) -> None:
    """A refused item is answered before a slow one that was sent earlier."""
    message = batch({"slow": question("!slow 0.3"), "refused": question("")})

    results = results_of(stack.entailment.StreamPredict(iter([message]), timeout=DEADLINE_SECONDS))

    assert [result.item_id for result in results] == ["refused", "slow"]


def test_half_close_finishes_items_in_flight(stack: Stack) -> None:
    """All items are answered, then the stream ends with OK."""
    named = {str(number): question("!slow 0.02", f"statement {number}") for number in range(20)}

    call = stack.entailment.StreamPredict(iter([batch(named)]), timeout=DEADLINE_SECONDS)

    assert_right(stack, named, results_of(call))
    code: Any = call
    assert code.code() is grpc.StatusCode.OK


def test_an_empty_stream_ends_at_once(stack: Stack) -> None:
    """With OK and without outcomes."""
    assert results_of(stack.entailment.StreamPredict(iter([]), timeout=DEADLINE_SECONDS)) == []


def test_an_answered_id_may_be_used_again(stack: Stack) -> None:
    """Ids must be unique among unanswered items only."""
    messages: queue.Queue[Any] = queue.Queue()
    call = stack.entailment.StreamPredict(iter(messages.get, None), timeout=DEADLINE_SECONDS)
    for _ in range(3):
        asked = question()
        messages.put(one_item("same", asked.request()))
        assert_right(stack, {"same": asked}, list(next(call).results))
    messages.put(None)
    assert results_of(call) == []


@pytest.mark.fault("I13")
def test_ten_thousand_items_are_answered(stack: Stack) -> None:
    """Sent as fast as the server reads them: each is answered once, and the queue stays bounded."""
    pool = [question(f"statement {number}") for number in range(50)]
    limit = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest()).limits.max_stream_outstanding
    asked = (batch({str(n + i): pool[(n + i) % 50] for i in range(20)}) for n in range(0, 10_000, 20))
    most, seen = 0, Counter[str]()

    for answer in stack.entailment.StreamPredict(asked, timeout=LONG_SECONDS):
        for result in answer.results:
            seen[result.item_id] += 1
            assert scores_of(result.response) == stack.answers.of("r1", pool[int(result.item_id) % 50])
        if len(seen) % 1000 == 0:
            most = max(most, int(value_of(stack, "hotslot_unanswered_requests")))

    assert len(seen) == 10_000
    assert set(seen.values()) == {1}
    assert most <= limit + 20


@pytest.mark.fault("I16")
def test_a_client_that_never_reads_is_not_read_further(make_stack: MakeStack) -> None:
    """Its stream stops being read; other calls are answered, and memory stays bounded."""
    stack = make_stack()
    picture = bytes(100_000)
    sent = 0
    stop = threading.Event()

    def pour() -> Iterator[pb.StreamPredictRequest]:
        nonlocal sent
        while not stop.is_set() and sent < 20_000:
            sent += 1
            yield one_item("i" * 100 + str(sent), question(*["a"] * 32, image=picture).request())

    call = stack.entailment.StreamPredict(pour(), timeout=LONG_SECONDS)

    def is_held_back() -> bool:
        """Not while others are answered either; a pause of a busy machine is none of the server's."""
        held = wait_still(lambda: sent)
        assert value_of(stack, "hotslot_unanswered_requests") <= 64
        for _ in range(20):
            stack.check(question())
        return held == sent

    try:
        eventually(is_held_back, what="the caller is held back")
        assert sent < 5_000, "the server did not stop reading"
    finally:
        stop.set()
        cancel(call)
    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 0, what="nothing is left of the caller")


@pytest.mark.fault("I14")
def test_cancelled_calls_release_everything(stack: Stack) -> None:
    """Hundreds of cancelled calls and streams: admission, leases and streams are released."""
    before = descriptors_of(stack)
    for number in range(300):
        if number % 3:
            messages = iter([batch({str(item): question("!slow 0.001") for item in range(8)})])
            call = stack.entailment.StreamPredict(messages, timeout=DEADLINE_SECONDS)
            if number % 2:
                next(call)
            cancel(call)
        else:
            future: Any = stack.entailment.Predict.future(question("!slow 0.001").request(), timeout=DEADLINE_SECONDS)
            future.cancel()

    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 0, what="every place is free again")
    stack.check(question())
    load_id = stack.control.trial(stack.answers.digest_of("r2"))
    stack.control.commit(load_id)
    stack.control.retire(stack.control.other().load_id)  # would wait for ever for a lease that is never ended
    assert stack.check(question()) == "r2"
    assert descriptors_of(stack) <= before + 8


@pytest.mark.fault("S2")
def test_a_stream_continues_over_a_swap(stack: Stack) -> None:
    """Earlier items are answered by the old revision, later ones by the new one."""
    messages: queue.Queue[Any] = queue.Queue()
    call = stack.entailment.StreamPredict(iter(messages.get, None), timeout=LONG_SECONDS)

    def ask(name: str) -> str:
        asked = question(name)
        messages.put(one_item(name, asked.request()))
        results = list(next(call).results)
        assert_right(stack, {name: asked}, results)
        return results[0].response.served_by.revision

    assert ask("before") == "r1"
    load_id = stack.control.trial(stack.answers.digest_of("r2"))
    assert ask("on trial") == "r2"
    stack.control.commit(load_id)
    stack.control.retire(stack.control.other().load_id)
    assert ask("after") == "r2"
    messages.put(None)
    assert results_of(call) == []


def test_a_stream_is_held_back_where_a_unary_call_is_refused(make_stack: MakeStack, tmp_path: Path) -> None:
    """The refusal says when to come back; every item of the stream is answered."""
    held, runner = tmp_path / "held", {"min_timeout_seconds": 60.0}
    stack = make_stack(server={"max_waiting_requests": 2}, runner=runner, script={"held_by": str(held)})
    messages: queue.Queue[Any] = queue.Queue()
    call = stack.entailment.StreamPredict(iter(messages.get, None), timeout=LONG_SECONDS)
    asked = {"busy": question("!held"), **{str(number): question() for number in range(11)}}
    predict: Any = stack.entailment.Predict
    with holding(held):
        messages.put(batch(asked))
        eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 12, what="the items are accepted")
        unary = [predict.future(question().request(), timeout=LONG_SECONDS) for _ in range(2)]
        eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 14, what="the unary calls are accepted")
        with pytest.raises(grpc.RpcError) as error:
            stack.predict(question())
        messages.put(None)
    assert all(one.result().results for one in unary)

    refusal, pushback = refusal_of(error.value), cast("Any", error.value).trailing_metadata()
    assert refusal.brief == ("RESOURCE_EXHAUSTED", "QUEUE_FULL", ())
    assert refusal.retry_seconds is not None
    assert 0 < refusal.retry_seconds < 5
    assert int(dict(pushback)["grpc-retry-pushback-ms"]) == pytest.approx(1000 * refusal.retry_seconds, abs=1)
    assert_right(stack, asked, results_of(call))


def wait_still(count: Callable[[], int]) -> int:
    """Wait until a number has not changed for a second."""
    last, since = -1, time.monotonic()

    def is_still() -> bool:
        nonlocal last, since
        now = count()
        if now != last:
            last, since = now, time.monotonic()
        return now > 0 and time.monotonic() - since > 1.0

    eventually(is_still, what="the caller is held back")
    return last


def cancel(call: Any) -> None:  # noqa: ANN401  grpc's call
    """Hang up."""
    call.cancel()


def descriptors_of(stack: Stack) -> int:
    """Open descriptors of the server."""
    return int(stack.status.GetServerStatus(status_pb2.GetServerStatusRequest()).resources.descriptors_used)
