"""Requests whose pictures take long keep no other request waiting: the dispatcher sends only a few at once."""

import asyncio

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.server.request import PendingRequest
from inference.server.scheduling.dispatcher import Dispatcher
from inference.server.scheduling.in_flight import WINDOW_CALLS
from tests.server.simulator import ManualClock
from tests.server.test_dispatcher import CALL_ROWS, Log, open_dispatcher, request

pytestmark = pytest.mark.fault("L8")

PLACES = 2
SECONDS = 1.0  # of decoding, by the runner's estimate


@pytest.fixture
def log() -> Log:
    """What the runner and the listener get."""
    return Log()


def postpone(*item_ids: int) -> runner_pb2.ItemsReply:
    """The runner has looked at pictures and dropped them."""
    reply = runner_pb2.ItemsReply()
    for item_id in item_ids:
        reply.outcomes.add(item_id=item_id).postponed.MergeFrom(runner_pb2.Postponed(seconds=SECONDS, places=PLACES))
    return reply


def answer(*item_ids: int) -> runner_pb2.ItemsReply:
    """The runner has answered items of one row."""
    reply = runner_pb2.ItemsReply()
    for item_id in item_ids:
        reply.outcomes.add(item_id=item_id, computed_rows=1).entailment.scores.add(yes=1.0)
    return reply


async def test_a_postponed_request_is_sent_again_with_notice(log: Log) -> None:
    """Nothing has failed, and the runner was in use all the time."""
    dispatcher = await open_dispatcher(log)
    dispatcher.submit(request())
    await asyncio.sleep(0)

    dispatcher.on_reply(postpone(1))
    await asyncio.sleep(0)
    dispatcher.on_reply(answer(2))

    assert [(item.item_id, item.may_take_long) for item in log.sent] == [(1, False), (2, True)]
    assert [event for event in log.events if event not in ("busy", "idle")] == ["answer"]
    assert dispatcher.is_idle


async def test_only_as_many_are_sent_as_the_runner_has_places(log: Log) -> None:
    """The others wait here, where each caller has its turn; one follows when one is done."""
    dispatcher = await open_dispatcher(log)
    slow = [request() for _ in range(5)]
    for one in slow:
        dispatcher.submit(one)
    await asyncio.sleep(0)
    dispatcher.on_reply(postpone(*(item.item_id for item in log.sent)))
    await asyncio.sleep(0)
    sent = [item.item_id for item in log.sent if item.may_take_long]

    dispatcher.on_reply(answer(sent[0]))
    await asyncio.sleep(0)

    assert len(sent) == PLACES
    assert sum(item.may_take_long for item in log.sent) == PLACES + 1


async def test_they_do_not_fill_the_window(log: Log) -> None:
    """While they are decoded as many rows of others are sent as ever."""
    dispatcher = await open_dispatcher(log)
    for rows in (32, 32):
        dispatcher.submit(request(rows))
        await asyncio.sleep(0)
        dispatcher.on_reply(postpone(log.sent[-1].item_id))
        await asyncio.sleep(0)
    before = len(log.sent)

    for _ in range(100):
        dispatcher.submit(request(priority=1))
    await asyncio.sleep(0)

    assert sum(item.may_take_long for item in log.sent) == PLACES
    assert len(log.sent) - before == round(WINDOW_CALLS * CALL_ROWS)


async def test_one_that_is_cancelled_leaves_its_queue(log: Log) -> None:
    """It is not sent, and nothing is left of it."""
    dispatcher = await open_dispatcher(log)
    slow = await _hold_places_and_one_more(dispatcher, log)

    dispatcher.cancel(slow)
    held = [item.item_id for item in log.sent if item.may_take_long]
    dispatcher.on_reply(answer(*held))
    await asyncio.sleep(0)

    assert sum(item.may_take_long for item in log.sent) == PLACES
    assert dispatcher.is_idle


async def test_those_that_wait_survive_the_runner(log: Log) -> None:
    """They are no suspects: no runner held them when it ended."""
    dispatcher = await open_dispatcher(log)
    slow = await _hold_places_and_one_more(dispatcher, log)

    suspects, others = dispatcher.close()

    assert slow in others
    assert len(suspects) == PLACES


async def test_one_that_comes_back_needs_no_second_look(log: Log) -> None:
    """For example after its runner has ended: what its picture takes is known."""
    dispatcher = await open_dispatcher(log)
    known = request()
    known.decoding_seconds = SECONDS

    dispatcher.submit(known)
    await asyncio.sleep(0)

    assert [item.may_take_long for item in log.sent] == [True]


async def test_one_that_cannot_be_decoded_in_time_fails_at_once(log: Log) -> None:
    """When half of the estimate is longer than what is left."""
    dispatcher = await open_dispatcher(log)
    now = ManualClock().monotonic()
    late, in_time = request(seconds=now + SECONDS / 4), request(seconds=now + SECONDS)
    for one in (late, in_time):
        one.decoding_seconds = SECONDS
        dispatcher.submit(one)
    await asyncio.sleep(0)

    assert [event for event in log.events if event != "busy"] == ["DEADLINE_EXPIRED"]
    assert len(log.sent) == 1


async def _hold_places_and_one_more(dispatcher: Dispatcher, log: Log) -> PendingRequest:
    slow = [request() for _ in range(PLACES + 1)]
    for one in slow:
        dispatcher.submit(one)
    await asyncio.sleep(0)
    dispatcher.on_reply(postpone(*(item.item_id for item in log.sent)))
    await asyncio.sleep(0)
    return slow[-1]


@pytest.mark.parametrize("seconds", [0.0, SECONDS])
async def test_one_that_must_be_computed_alone_is_sent_although_others_keep_coming(log: Log, seconds: float) -> None:
    """As soon as the runner has answered what it held; the others wait, whether its picture takes long or not."""
    dispatcher = await open_dispatcher(log)
    for _ in range(3):
        dispatcher.submit(request())
    await asyncio.sleep(0)
    alone = request()
    alone.alone, alone.decoding_seconds = True, seconds  # a suspect of the end of a runner
    dispatcher.submit(alone)

    for item_id in (1, 2, 3):
        dispatcher.submit(request())
        await asyncio.sleep(0)
        assert not alone.sent_at
        dispatcher.on_reply(answer(item_id))
    await asyncio.sleep(0)
    sent_beside = len(log.sent)
    dispatcher.on_reply(answer(log.sent[-1].item_id))
    await asyncio.sleep(0)

    assert alone.sent_at
    assert sent_beside == 3 + 1
    assert len(log.sent) == 3 + 1 + 3


async def test_one_that_must_be_computed_alone_and_is_too_late_keeps_no_other_waiting(log: Log) -> None:
    """It fails, and those behind it are sent beside what the runner holds."""
    dispatcher = await open_dispatcher(log)
    dispatcher.submit(request())
    await asyncio.sleep(0)
    alone = request(seconds=SECONDS)
    alone.alone, alone.decoding_seconds = True, 100 * SECONDS
    dispatcher.submit(alone)
    dispatcher.submit(request())
    await asyncio.sleep(0)

    assert not alone.sent_at
    assert len(log.sent) == 2


async def test_one_that_must_be_computed_alone_does_not_wait_for_slow_ones_that_keep_coming(log: Log) -> None:
    """None of them is sent before it, and what waits behind it follows."""
    dispatcher = await open_dispatcher(log)
    slow, next_slow, alone, behind = (request() for _ in range(4))
    slow.decoding_seconds = next_slow.decoding_seconds = SECONDS
    alone.alone = True
    dispatcher.submit(slow)
    await asyncio.sleep(0)
    for one in (alone, behind, next_slow):
        dispatcher.submit(one)
    await asyncio.sleep(0)
    assert [one.sent_at > 0 for one in (alone, behind, next_slow)] == [False, False, False]

    dispatcher.on_reply(answer(1))
    await asyncio.sleep(0)
    assert [one.sent_at > 0 for one in (alone, behind, next_slow)] == [True, False, False]

    dispatcher.on_reply(answer(2))
    await asyncio.sleep(0)
    assert [one.sent_at > 0 for one in (alone, behind, next_slow)] == [True, True, True]
