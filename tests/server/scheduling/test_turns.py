"""Turns to read: which stream reads next, and how much is read ahead."""

import asyncio

import pytest

from inference.server.request import Priority
from inference.server.scheduling.fair_queue import Caller, CallerRules, Quota
from inference.server.scheduling.turns import (
    GRANT_SECONDS,
    MAX_AHEAD,
    QUOTA_LOOK_SECONDS,
    TURN_ROWS,
    Reader,
    ReadTurns,
    TurnGate,
)


def streams(count: int, caller: Caller | None = None) -> list[Reader]:
    """Streams of one caller."""
    caller = caller or Caller(CallerRules("a"))
    return [Reader(caller, caller.stream_flow(number)) for number in range(1, count + 1)]


def test_a_stream_reads_at_once_while_little_waits() -> None:
    """Without load nobody waits for a turn."""
    turns = ReadTurns(0.5)
    readers = streams(3)
    for reader in readers:
        turns.wait(reader)
    assert turns.grant(look_ahead_rows=3 * TURN_ROWS, now=0.0) == readers


def test_no_stream_reads_while_the_look_ahead_is_full() -> None:
    """Rows that were read and not sent count, until they are sent."""
    turns, (reader,) = ReadTurns(0.5), streams(1)
    turns.unsent_rows = 8
    turns.wait(reader)
    assert turns.grant(8, 0.0) == []
    turns.unsent_rows = 7
    assert turns.grant(8, 0.0) == [reader]


def test_what_may_be_read_counts() -> None:
    """Each turn with its rows, until they are read."""
    turns, readers = ReadTurns(0.5), streams(4)
    for reader in readers:
        turns.wait(reader)
    assert turns.grant(2 * TURN_ROWS, 0.0) == readers[:2]
    turns.on_read(readers[0], TURN_ROWS, 0.0)
    assert turns.grant(2 * TURN_ROWS, 0.0) == readers[2:3]


def test_small_messages_share_a_turn() -> None:
    """A stream of single rows reads as many rows in its turn as a stream of large messages."""
    turns, (reader,) = ReadTurns(0.5), streams(1)
    turns.wait(reader)
    turns.grant(1, 0.0)
    for _ in range(TURN_ROWS - 1):
        turns.on_read(reader, 1, 0.0)
        assert reader.allowance > 0
    turns.on_read(reader, 1, 0.0)
    assert reader.allowance == 0


def test_a_stream_without_a_message_holds_the_others_back_for_a_moment_only() -> None:
    """It keeps its turn: what it sends later is read at once."""
    turns, readers = ReadTurns(0.5), streams(2)
    for reader in readers:
        turns.wait(reader)
    assert turns.grant(8, 0.0) == readers[:1]
    assert turns.next_grant_at() == GRANT_SECONDS
    assert turns.grant(8, GRANT_SECONDS) == readers[1:]
    assert readers[0].allowance == TURN_ROWS


def test_streams_are_charged_for_what_they_have_read() -> None:
    """One that sends messages of 320 rows has its turn less often than one of 4."""
    turns, (large, small) = ReadTurns(0.5), streams(2)
    rows = {large: 320, small: 4}
    read = dict.fromkeys(rows, 0)
    for reader in rows:
        turns.wait(reader)
    for _ in range(900):
        (reader,) = turns.grant(1, 0.0)
        while reader.allowance:
            turns.on_read(reader, rows[reader], 0.0)
            read[reader] += rows[reader]
        turns.wait(reader)
    assert read[large] == pytest.approx(read[small], rel=0.05)


def test_a_caller_over_its_quota_reads_when_it_is_within_it_again() -> None:
    """Its streams are held back; others go on."""
    limited = Caller(CallerRules("limited"), Quota(10.0, 0.0))
    turns, (held,), (free,) = ReadTurns(0.5), streams(1, limited), streams(1)
    turns.wait(held)
    assert turns.grant(64, 0.0) == [held]
    turns.on_read(held, 15, 0.0)
    limited.use_quota(15, 0.0)
    turns.wait(held)
    turns.wait(free)
    assert turns.grant(64, 0.0) == [free]
    at = turns.next_grant_at()
    assert at == pytest.approx(0.5, abs=0.01)
    assert turns.grant(64, at or 0.0) == [held]


@pytest.mark.parametrize("is_granted", [False, True])
def test_a_stream_that_has_ended_is_forgotten(*, is_granted: bool) -> None:
    """Whether it waits or has its turn."""
    turns, (gone, other) = ReadTurns(0.5), streams(2)
    turns.wait(gone)
    if is_granted:
        turns.grant(1, 0.0)
    turns.leave(gone)
    turns.wait(other)
    assert turns.grant(1, 0.0) == [other]
    assert len(turns) == 0


def test_streams_that_have_read_one_message_leave_nothing_behind() -> None:
    """However many come: each is charged for its message, although nothing of it ever waited."""
    caller = Caller(CallerRules("a"))
    turns = ReadTurns(0.5)
    for number in range(1, 2000):
        reader = Reader(caller, caller.stream_flow(number))
        assert turns.may_accept(reader, 0.0)
        turns.on_read(reader, 1, 0.0)
        turns.leave(reader)

    callers = turns._waiting._root.children[Priority.BULK].children  # noqa: SLF001
    assert [len(node.children) for node in callers.values()] == [0]


class Clock:
    """A clock that only the test advances."""

    seconds = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds


@pytest.fixture
def gate() -> TurnGate:
    """A gate with a look-ahead of 8 rows, of which 8 are unsent."""
    gate = TurnGate(0.5, Clock(), lambda: 8)  # type: ignore[arg-type]
    gate.add_unsent(8)
    return gate


async def test_a_stream_waits_at_the_gate_until_rows_are_sent(gate: TurnGate) -> None:
    """Then it reads within the same turn of the loop or the next."""
    (reader,) = streams(1)
    waiting = asyncio.ensure_future(gate.wait(reader))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.remove_unsent(1)
    await waiting
    assert reader.allowance == TURN_ROWS


async def test_a_stream_is_woken_although_another_waits_for_its_quota_for_long(gate: TurnGate) -> None:
    """The wait of one that is over its quota delays no other's turn."""
    limited = Caller(CallerRules("limited"), Quota(1.0, 0.0))
    limited.use_quota(1000, 0.0)
    (held,), (other,) = streams(1, limited), streams(1)
    first = asyncio.ensure_future(gate.wait(held))
    await asyncio.sleep(0)
    gate.remove_unsent(8)
    await asyncio.sleep(0.002)  # until the gate has looked, and looks again only when the quota allows
    gate.add_unsent(8)
    second = asyncio.ensure_future(gate.wait(other))
    await asyncio.sleep(0)
    gate.remove_unsent(8)
    await asyncio.wait_for(second, 1.0)
    first.cancel()
    assert (held.allowance, other.allowance) == (0, TURN_ROWS)


async def test_a_stream_without_unanswered_items_does_not_wait(gate: TurnGate) -> None:
    """It may have nothing more to send, and then it must end."""
    (reader,) = streams(1)
    assert gate.may_read(reader, is_free=True)
    assert not gate.may_read(reader, is_free=False)
    waiting = asyncio.ensure_future(gate.wait(reader))
    await asyncio.sleep(0)
    gate.skip(reader)
    await waiting
    assert (reader.allowance, len(gate)) == (0, 0)


def test_a_stream_over_its_quota_reads_without_unanswered_items_and_its_message_waits() -> None:
    """It may have ended; and a caller with one item at a time is held to its quota too."""
    limited = Caller(CallerRules("limited"), Quota(10.0, 0.0))
    limited.use_quota(15, 0.0)
    turns, (reader, busy) = ReadTurns(0.5), streams(2, limited)
    assert turns.may_read(reader, 0.0, is_free=True)
    assert not turns.may_accept(reader, 0.0)
    assert not turns.may_read(busy, 0.0, is_free=False)
    turns.wait(busy)
    assert turns.grant(64, 0.0) == []
    assert turns.skip(busy, 0.0)  # its items are answered
    assert turns.may_accept(reader, 0.6)


def test_few_streams_of_a_caller_over_its_quota_read_however_long_it_takes() -> None:
    """What they send waits in memory; within the quota a stream without a message counts for a moment only."""
    limited = Caller(CallerRules("limited"), Quota(10.0, 0.0))
    limited.use_quota(1010, 0.0)
    turns, readers = ReadTurns(0.5), streams(MAX_AHEAD + 1, limited)
    assert [turns.may_read(reader, n * GRANT_SECONDS, is_free=True) for n, reader in enumerate(readers)].count(
        False
    ) == 1
    assert not turns.may_read(readers[-1], 99.0, is_free=True)
    assert turns.may_read(readers[-1], 101.0, is_free=True)


def test_a_stream_that_owes_rows_to_those_that_wait_does_not_read_without_a_turn() -> None:
    """One item at a time is read at once up to its share, and not beyond it."""
    turns, (fast, *others) = ReadTurns(0.5), streams(4)
    for reader in others:
        turns.wait(reader)
    assert turns.goes_first(fast, 0.0)
    for _ in range(TURN_ROWS + 1):
        turns.on_read(fast, 1, 0.0)
    assert not turns.goes_first(fast, 0.0)
    for reader in others:
        assert turns.grant(1, 0.0) == [reader]
        turns.on_read(reader, TURN_ROWS, 0.0)
        turns.wait(reader)
    turns.grant(1, 0.0)
    assert turns.goes_first(fast, 0.0)


def test_few_streams_of_a_caller_read_without_a_turn() -> None:
    """The others wait for theirs, until the items of those were answered; another caller is not held back by it."""
    turns, readers, (other,) = ReadTurns(0.5), streams(MAX_AHEAD + 1), streams(1, Caller(CallerRules("b")))
    turns.unsent_rows = 1000
    for reader in readers[:-1]:
        assert turns.may_read(reader, 0.0, is_free=True)
        assert turns.may_accept(reader, 0.0)
        turns.on_read(reader, 64, 0.0)
    late = GRANT_SECONDS
    assert not turns.may_read(readers[-1], late, is_free=True)
    assert turns.may_read(other, late, is_free=True)
    turns.wait(readers[-1])
    assert turns.grant(8, late) == []
    assert not turns.skip(readers[0], late)  # its items are answered, and it does not wait
    assert turns.skip(readers[-1], late)
    assert turns.may_read(readers[-1], late, is_free=True)


def test_messages_that_come_long_after_their_turns_are_not_accepted_all_at_once() -> None:
    """Streams that had nothing to send hold nobody back then; if all of them send at once, they wait for turns."""
    turns, readers = ReadTurns(0.5), streams(MAX_AHEAD + 2)
    for number, reader in enumerate(readers):
        assert turns.may_read(reader, number * GRANT_SECONDS, is_free=True)
    now = len(readers) * GRANT_SECONDS
    accepted = [reader for reader in readers if turns.may_accept(reader, now)]
    assert len(accepted) == MAX_AHEAD
    (late, *_) = (reader for reader in readers if reader not in accepted)
    turns.wait(late)
    assert turns.grant(8, now) == [late]
    assert turns.may_accept(late, now)


def test_what_is_left_of_a_turn_is_given_back_when_a_stream_waits_again() -> None:
    """A stream is charged for what it has read, however often it had to wait."""
    turns, (reader, other) = ReadTurns(0.5), streams(2)
    for _ in range(20):
        turns.wait(reader)
        assert turns.grant(1, 0.0) == [reader]
    turns.wait(reader)
    turns.wait(other)
    assert turns.grant(2 * TURN_ROWS, 0.0) == [reader, other]


def test_what_is_left_of_an_old_turn_is_no_credit() -> None:
    """A thousand streams that sent little in their turns, and much at once later, delay no other caller by them."""
    turns, readers, (other,) = ReadTurns(0.5), streams(1000), streams(1, Caller(CallerRules("b")))
    for reader in readers:
        turns.wait(reader)
    now = 0.0
    while len(turns):
        now += GRANT_SECONDS
        for reader in turns.grant(1, now):
            turns.on_read(reader, 1, now)
    turns.wait(other)
    for reader in readers:
        turns.wait(reader)
    before = 0
    while other not in (turned := turns.grant(1, now := now + GRANT_SECONDS)):
        before += len(turned)
    assert before <= 1


def test_a_stream_that_has_ended_takes_no_place_although_its_items_end_later() -> None:
    """Its items are cancelled after it has left, while another caller is over its quota."""
    limited = Caller(CallerRules("limited"), Quota(1.0, 0.0))
    limited.use_quota(1000, 0.0)
    turns, (held,), gone = ReadTurns(0.5), streams(1, limited), streams(MAX_AHEAD)
    turns.wait(held)
    turns.grant(64, 0.0)
    for reader in gone:
        assert turns.may_accept(reader, 0.0)
        turns.on_read(reader, 1, 0.0)
        turns.leave(reader)
        assert not turns.skip(reader, 0.0)
        assert not turns.reads_ahead(reader)


@pytest.mark.parametrize("rules", [CallerRules("limited"), CallerRules("limited", rows_per_second=1e4)])
def test_streams_wait_no_longer_for_a_quota_that_was_raised(rules: CallerRules) -> None:
    """A reload lifts or raises it: within a second they have their turns."""
    limited = Caller(CallerRules("limited", rows_per_second=1.0), Quota(1.0, 0.0))
    limited.use_quota(1000, 0.0)
    turns, readers = ReadTurns(0.5), streams(3, limited)
    for reader in readers:
        turns.wait(reader)
    assert turns.grant(512, 0.0) == []
    limited.configure(rules, 0.5)
    at = turns.next_grant_at() or 0.0
    assert turns.grant(512, at) == readers
    assert 0 < at <= QUOTA_LOOK_SECONDS


class CountedCaller(Caller):
    """Counts how often its quota is looked at."""

    looks = 0

    def quota_wait(self, now: float) -> float:
        """As of any caller."""
        self.looks += 1
        return super().quota_wait(now)


def test_many_streams_over_their_quota_cost_little_at_each_turn() -> None:
    """Only the next one of a caller is looked at, not all that wait."""
    limited = CountedCaller(CallerRules("limited"), Quota(10.0, 0.0))
    limited.use_quota(20, 0.0)
    turns, readers = ReadTurns(0.5), streams(1000, limited)
    for reader in readers:
        turns.wait(reader)
    turns.grant(TURN_ROWS, 0.0)
    limited.looks, now = 0, 0.0
    order = []
    for _ in range(100):
        now = turns.next_grant_at() or now
        for reader in turns.grant(TURN_ROWS, now):
            order.append(reader)
            limited.use_quota(4, now)
            turns.on_read(reader, TURN_ROWS, now)
            turns.wait(reader)
    assert limited.looks < 100 * 10
    assert order == readers[: len(order)]
    assert len(order) > 90


def test_streams_of_a_caller_share_its_quota_by_rows() -> None:
    """One that sends messages of 64 rows has its turn less often than one of 8, also when they wait for the quota."""
    limited = Caller(CallerRules("limited"), Quota(100.0, 0.0))
    limited.use_quota(200, 0.0)
    turns, (large, small) = ReadTurns(0.5), streams(2, limited)
    rows, now = {large: 64, small: 8}, 0.0
    read = dict.fromkeys(rows, 0)
    for reader in rows:
        turns.wait(reader)
    turns.grant(TURN_ROWS, now)
    for _ in range(600):
        now = turns.next_grant_at() or now
        for reader in turns.grant(1, now):
            while reader.allowance:
                turns.on_read(reader, rows[reader], now)
                limited.use_quota(rows[reader], now)
                read[reader] += rows[reader]
            turns.wait(reader)
        turns.grant(0, now)
    assert read[large] == pytest.approx(read[small], rel=0.05)
