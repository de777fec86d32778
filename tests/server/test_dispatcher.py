"""The dispatcher: which request is sent when, and what an outcome means for it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.server.request import EntailmentInput, Failure, Flow, PendingRequest, Priority
from inference.server.scheduling.device_share import DeviceShare
from inference.server.scheduling.dispatcher import JOIN_ITEMS, Computed, Dispatcher
from inference.server.scheduling.in_flight import (
    MAX_IN_FLIGHT_BYTES,
    MAX_INTERRUPTIONS,
    MAX_WINDOW_CALLS,
    WINDOW_CALLS,
    WINDOW_GROWTH,
    InFlight,
    adapt_window,
    limit_window,
    may_send,
)
from inference.server.scheduling.limits import LimitRules
from inference.wire import Picture
from tests.server.simulator import ManualClock

CALL_ROWS = 4


def request(
    rows: int = 1,
    *,
    priority: int = 0,
    seconds: float = math.inf,
    size: int = 0,
    alone: bool = False,
    is_copy: bool = False,
) -> PendingRequest:
    """A request that nothing has answered."""
    payload = EntailmentInput(bytes(size), ("",) * rows, "")
    outcome, flow = asyncio.get_running_loop().create_future(), Flow(Priority(priority), "")
    return PendingRequest(payload, 0.0, seconds, outcome, flow=flow, alone=alone, is_copy=is_copy)


def holding(*requests: PendingRequest) -> InFlight:
    """What a runner holds."""
    held = InFlight()
    for item_id, one in enumerate(requests, 1):
        held.add(item_id, one)
    return held


async def test_a_window_of_two_device_calls_is_filled() -> None:
    """Further bulk requests wait in the queue, where others may still overtake them."""
    bulk = request(4, priority=1)
    assert may_send(bulk, holding(), CALL_ROWS)
    assert may_send(bulk, holding(request(7, priority=1)), CALL_ROWS)
    assert not may_send(bulk, holding(request(8, priority=1)), CALL_ROWS)


async def test_computed_rows_make_room_before_the_item_is_complete() -> None:
    """A large item is computed in several calls; each makes room for what comes behind it."""
    held = holding(request(32, priority=1))
    held.count_computed(24)
    assert not may_send(request(priority=1), held, CALL_ROWS)
    held.count_computed(1)
    assert may_send(request(priority=1), held, CALL_ROWS)
    held.remove(1, computed_rows=25)
    assert held.rows_left == 0


async def test_an_interactive_request_passes_the_bulk_ones_that_fill_the_window() -> None:
    """As many as two device calls take: it waits for the running call and for interactive ones before it only."""
    bulk = [request(8, priority=1)]
    assert may_send(request(), holding(*bulk), CALL_ROWS)
    assert may_send(request(), holding(*bulk, request(7)), CALL_ROWS)
    assert not may_send(request(), holding(*bulk, request(8)), CALL_ROWS)


async def test_a_suspect_request_is_sent_when_nothing_is_held_and_then_nothing_else_is() -> None:
    """If it ends the runner, it alone is the cause."""
    assert may_send(request(alone=True), holding(), CALL_ROWS)
    assert not may_send(request(alone=True), holding(request()), CALL_ROWS)
    assert not may_send(request(), holding(request(alone=True)), CALL_ROWS)


@pytest.mark.parametrize(
    ("rows", "idle_seconds", "is_backlogged", "expected"),
    [
        (CALL_ROWS, 0.0, True, WINDOW_CALLS),
        (CALL_ROWS - 1, 0.0, True, WINDOW_CALLS),  # the last item did not fit
        (CALL_ROWS // 2, 0.0, True, WINDOW_CALLS * WINDOW_GROWTH),
        (CALL_ROWS, 0.1, True, WINDOW_CALLS * WINDOW_GROWTH),
        (1, 9.0, False, WINDOW_CALLS),  # there was nothing to send
    ],
)
def test_the_window_grows_while_requests_wait_and_the_device_does_too(
    rows: int,
    idle_seconds: float,
    is_backlogged: bool,  # noqa: FBT001
    expected: float,
) -> None:
    """Then sending and preparing takes longer than the window lasts; it shrinks again when calls are full."""
    call = runner_pb2.DeviceCall(rows=rows, computed_seconds=1.0, idle_seconds=idle_seconds)
    window = adapt_window(WINDOW_CALLS, call, CALL_ROWS, is_backlogged=is_backlogged)
    assert window == expected
    for _ in range(20):
        window = adapt_window(window, call, CALL_ROWS, is_backlogged=is_backlogged)
    assert window in (WINDOW_CALLS, MAX_WINDOW_CALLS)
    full = runner_pb2.DeviceCall(rows=CALL_ROWS, computed_seconds=1.0)
    for _ in range(300):
        window = adapt_window(window, full, CALL_ROWS, is_backlogged=True)
    assert window == WINDOW_CALLS


async def test_a_wider_window_sends_more() -> None:
    """In rows of device calls."""
    assert may_send(request(priority=1), holding(request(8, priority=1)), CALL_ROWS, window_calls=2.5)
    assert not may_send(request(priority=1), holding(request(10, priority=1)), CALL_ROWS, window_calls=2.5)


async def test_the_bytes_in_flight_are_bounded() -> None:
    """They fit into one frame; a single larger request is sent by itself."""
    half = MAX_IN_FLIGHT_BYTES // 2
    assert may_send(request(size=half), holding(request(size=half)), CALL_ROWS)
    assert not may_send(request(size=half), holding(request(size=half + 1)), CALL_ROWS)
    assert may_send(request(size=3 * half), holding(), CALL_ROWS)


async def answer(dispatcher: Dispatcher, *items: runner_pb2.Item) -> None:
    """Answer items of one statement each; what that makes room for is sent."""
    reply = runner_pb2.ItemsReply()
    for item in items:
        reply.outcomes.add(item_id=item.item_id, computed_rows=1).entailment.scores.add(yes=1.0)
    dispatcher.on_reply(reply)
    await asyncio.sleep(0)


async def test_only_what_the_device_computed_is_suspected_of_having_ended_the_runner() -> None:
    """What was held besides is run again like any other; without a device call everything is suspected."""
    computed, held = request(), request()
    assert holding(computed, held).split([1]) == ([computed], [held])
    assert holding(computed, held).split([]) == ([computed, held], [])


async def test_what_several_runners_held_at_their_ends_is_suspected_too() -> None:
    """An input that ends runners in its preparation, while the device computes others."""
    poison = request()
    for _ in range(MAX_INTERRUPTIONS):
        assert holding(request(), poison).split([1])[1] == [poison]
    assert poison in holding(request(), poison).split([1])[0]


@dataclass
class Log:
    """The listener and the runner of a dispatcher; keeps what they were told."""

    sent: list[runner_pb2.Item] = field(default_factory=list)
    frames: list[list[int]] = field(default_factory=list)  # the size of each picture
    cancelled: list[int] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def send_items(self, items: Sequence[tuple[runner_pb2.Item, Picture]]) -> None:
        """Keep the items."""
        self.sent += [item for item, _ in items]
        self.frames.append([len(picture) for _, picture in items])

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Keep the ids."""
        self.cancelled += item_ids

    def on_busy(self) -> None:
        """Keep it."""
        self.events.append("busy")

    def on_sent(self, request: PendingRequest) -> None:
        """Ignore it."""

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """Keep it."""
        del request, computed
        self.events.append("answer")

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """Keep the reason."""
        del request
        self.events.append(failure.reason)

    def on_call(self, call: runner_pb2.DeviceCall, *, is_of_copies: bool) -> None:
        """Keep the rows."""
        self.events.append(f"call of {call.rows}")

    def on_idle(self) -> None:
        """Keep it."""
        self.events.append("idle")


@pytest.fixture
def log() -> Log:
    """An empty log."""
    return Log()


async def open_dispatcher(log: Log, share: DeviceShare | None = None) -> Dispatcher:
    """A dispatcher that sends to the log."""
    dispatcher = Dispatcher(log, ManualClock(), LimitRules(2.0, 8.0))
    dispatcher.set_call_rows(CALL_ROWS)
    dispatcher.open(log, 0.01, share or DeviceShare(), "model")
    return dispatcher


async def test_bulk_items_wait_a_moment_for_others_while_the_runner_has_enough_to_do(log: Log) -> None:
    """They share a frame. An interactive request waits for nothing, and takes them along."""
    dispatcher = await open_dispatcher(log)
    dispatcher.set_call_rows(64)
    for _ in range(JOIN_ITEMS):
        dispatcher.submit(request(priority=1))
        await asyncio.sleep(0)
    assert len(log.sent) == JOIN_ITEMS

    for _ in range(3):
        dispatcher.submit(request(priority=1))
        await asyncio.sleep(0)
    assert len(log.sent) == JOIN_ITEMS

    dispatcher.submit(request())
    await asyncio.sleep(0)
    assert len(log.sent) == JOIN_ITEMS + 4


async def test_the_bytes_of_copies_in_flight_are_bounded_as_those_of_callers(log: Log) -> None:
    """They fit into one frame, and a caller's request is sent as soon as one has its outcome."""
    dispatcher = await open_dispatcher(log)
    third, rest = MAX_IN_FLIGHT_BYTES // 3, 1 << 20
    for _ in range(5):
        dispatcher.submit(request(size=third, is_copy=True))
    await asyncio.sleep(0)
    dispatcher.submit(request(size=rest))
    await asyncio.sleep(0)
    await answer(dispatcher, log.sent[0])
    await answer(dispatcher, *log.sent[1:])

    assert log.frames == [[third] * 3, [rest], [third] * 2]


async def test_a_single_copy_may_exceed_the_bytes_in_flight(log: Log) -> None:
    """As a caller's request may: it is sent when the runner holds nothing."""
    dispatcher = await open_dispatcher(log)
    large = MAX_IN_FLIGHT_BYTES + 1
    for size in (0, large):
        dispatcher.submit(request(size=size, is_copy=True))
    await asyncio.sleep(0)
    await answer(dispatcher, log.sent[0])

    assert log.frames == [[0], [large]]


async def test_one_lease_spans_all_that_the_runner_holds(log: Log) -> None:
    """From the first item to the last outcome, cancelled items included."""
    dispatcher = await open_dispatcher(log)
    gone, waiting = request(2), request(1)
    dispatcher.submit(gone)
    dispatcher.submit(waiting)
    await asyncio.sleep(0)
    dispatcher.cancel(gone)
    first, second = log.sent
    reply = runner_pb2.ItemsReply(call_rows=CALL_ROWS)
    reply.calls.add(items=1, rows=1, computed_seconds=0.01)
    reply.outcomes.add(item_id=second.item_id, computed_rows=1).entailment.scores.add(yes=1.0)
    dispatcher.on_reply(reply)
    assert log.events == ["busy", "call of 1", "answer"]
    assert log.cancelled == [first.item_id]

    reply = runner_pb2.ItemsReply()
    reply.outcomes.add(item_id=first.item_id).failure.reason = "CANCELLED"
    dispatcher.on_reply(reply)
    assert log.events[3:] == ["idle"]


@pytest.mark.parametrize("scores", [0, 1, 3])
async def test_an_outcome_without_a_score_for_each_statement_is_a_failure(log: Log, scores: int) -> None:
    """A caller gets an answer to each statement, or an error; never the answers of others."""
    dispatcher = await open_dispatcher(log)
    dispatcher.submit(request(2))
    await asyncio.sleep(0)
    reply = runner_pb2.ItemsReply()
    outcome = reply.outcomes.add(item_id=log.sent[0].item_id, computed_rows=2)
    outcome.entailment.SetInParent()
    for _ in range(scores):
        outcome.entailment.scores.add(yes=1.0)

    dispatcher.on_reply(reply)

    assert log.events == ["busy", "ENGINE_FAILED", "idle"]


async def test_an_item_that_was_cancelled_does_not_fail_its_request(log: Log) -> None:
    """The request may have come back meanwhile, as another item: only that one's outcome counts."""
    dispatcher = await open_dispatcher(log)
    again = request()
    for _ in range(2):
        dispatcher.submit(again)
        await asyncio.sleep(0)
        if not log.cancelled:
            dispatcher.cancel(again)
    first, second = log.sent
    for item, reason in ((first, "CANCELLED"), (second, "ENGINE_FAILED")):
        reply = runner_pb2.ItemsReply()
        reply.outcomes.add(item_id=item.item_id).failure.reason = reason
        dispatcher.on_reply(reply)
    assert log.events == ["busy", "ENGINE_FAILED", "idle"]


async def test_the_runner_tells_how_many_rows_a_call_takes(log: Log) -> None:
    """The window follows: a model that turns out slow is sent less ahead."""
    dispatcher = await open_dispatcher(log)
    dispatcher.on_reply(runner_pb2.ItemsReply(call_rows=1))
    for _ in range(5):
        dispatcher.submit(request(priority=1))
    await asyncio.sleep(0)
    assert len(log.sent) == 2
    assert dispatcher.queue.take_all()


async def test_rows_of_a_long_device_call_are_sent_shortly_before_it() -> None:
    """While a call of two seconds runs, the next ones can still be overtaken in the queue."""
    held, cost = holding(request(CALL_ROWS)), CallCost(0.5)
    assert limit_window(WINDOW_CALLS, held.work(0.5), cost, CALL_ROWS) == 1.0
    assert limit_window(WINDOW_CALLS, held.work(1.5), cost, CALL_ROWS) == WINDOW_CALLS
    assert limit_window(WINDOW_CALLS, held.work(0.0), CallCost(0.01), CALL_ROWS) == WINDOW_CALLS
    assert limit_window(3.0, held.work(0.5), cost, CALL_ROWS) == 3.0, "sending and preparing takes longer"


async def test_what_can_no_longer_be_answered_in_time_is_not_sent(log: Log) -> None:
    """It fails when its turn comes; those behind it are sent."""
    dispatcher = await open_dispatcher(log)
    now = ManualClock().seconds
    for one in (request(4, seconds=now + 0.03), request(4, seconds=now + 0.05)):
        dispatcher.submit(one)
    await asyncio.sleep(0)
    assert log.events == ["DEADLINE_EXPIRED", "busy"]
    assert [item.seconds_left for item in log.sent] == pytest.approx([0.05])


async def test_a_request_that_is_done_leaves_the_queue(log: Log) -> None:
    """It is no work that others would wait for."""
    dispatcher = await open_dispatcher(log)
    waiting = [request(8, priority=1) for _ in range(3)]
    for one in waiting:
        dispatcher.submit(one)
    await asyncio.sleep(0)
    assert dispatcher.estimate(waiting[0].flow, 1).queued == pytest.approx(0.16)
    dispatcher.forget(waiting[1])
    assert dispatcher.estimate(waiting[0].flow, 1).queued == pytest.approx(0.08)


async def test_a_model_that_is_ahead_on_a_shared_device_waits(log: Log) -> None:
    """It sends again when the other has nothing more to compute."""
    share = DeviceShare()
    dispatcher = await open_dispatcher(log, share)
    other = share.join("other", lambda: None)
    other.begin_waiting(ManualClock().seconds)
    first = request()
    dispatcher.submit(first)
    await asyncio.sleep(0)
    reply = runner_pb2.ItemsReply()
    for _ in range(50):
        reply.calls.add(items=1, rows=1, computed_seconds=0.01)
    dispatcher.on_reply(reply)
    dispatcher.submit(request())
    await asyncio.sleep(0)
    assert [item.is_device_contended for item in log.sent] == [True]
    other.end_waiting(ManualClock().seconds)
    await asyncio.sleep(0)
    assert [item.is_device_contended for item in log.sent] == [True, False]


async def test_what_a_model_computed_alone_counts_once_another_joins_its_device(log: Log) -> None:
    """While it was alone it told nobody; the other one learns of it with the next tick."""
    share = DeviceShare()
    dispatcher = await open_dispatcher(log, share)
    dispatcher.submit(request())
    await asyncio.sleep(0)
    other = share.join("other", lambda: None)
    dispatcher.dispatch()
    assert other.is_contended
    dispatcher.on_reply(runner_pb2.ItemsReply(outcomes=[runner_pb2.ItemOutcome(item_id=log.sent[0].item_id)]))
    assert not other.is_contended
