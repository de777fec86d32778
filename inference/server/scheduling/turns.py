"""Turns to read: a stream reads its next message when its rows are needed, in fair order."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Iterator

from common.clock import Clock
from inference.server.request import Flow
from inference.server.scheduling.fair_queue import Caller, FairQueue

TURN_ROWS = 32  # that a stream of weight 1 may read in its turn; the last message may have more
MAX_TURN_ROWS = 512
MAX_AHEAD = 32  # streams of a caller that have unanswered items, or read now, without having had a turn for them
QUOTA_LOOK_SECONDS = 1.0  # after which it is asked again whether a caller is over its quota: a reload may raise it
GRANT_SECONDS = 0.01  # a message that was already received is read within this time; a later one was not there yet


class Reader:
    """One stream. It waits for a turn, reads messages until its rows are used up, and waits again."""

    def __init__(self, caller: Caller, flow: Flow) -> None:
        self.caller = caller
        self.set_flow(flow)
        self.allowance = 0  # rows that it may still read in its turn
        self.on_turn: Callable[[], None] = lambda: None

    def set_flow(self, flow: Flow) -> None:
        """Let its rows be charged to this flow from now on."""
        self.flow = flow
        self.turn_rows = max(1, min(MAX_TURN_ROWS, round(TURN_ROWS * flow.weight)))


class ReadTurns:
    """The streams that want to read messages for one model. Pure; time is an argument.

    Turns are given while the rows that were read and not yet sent to the device, with those that may be read now, are
    below the look-ahead. A stream that has a turn and no message counts for a moment only: it keeps the rest of its
    turn, and holds nobody back.

    A bounded number of a caller's streams read ahead, without a turn: one without unanswered items, because only a read
    shows that it has ended, and one whose message came long after its turn. Each until its items are answered.
    """

    def __init__(self, interactive_share: float) -> None:
        self.unsent_rows = 0  # of stream items that were read and not sent
        self._waiting: FairQueue[Reader] = FairQueue(interactive_share)
        self._over_quota: dict[Caller, _SetAside] = {}
        self._look_at: float | None = None  # when a caller may be within its quota again
        self._reading: dict[Reader, float] = {}  # until when each counts
        self._ahead: dict[str, dict[Reader, float]] = {}  # by caller: those that read ahead; until when each counts

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(aside) for aside in self._over_quota.values())

    def wait(self, reader: Reader) -> None:
        """Let a stream wait for its turn; `grant` gives it.

        What is left of the last one is given back if that still counts: any number of streams could save it up.
        """
        if reader in self._reading:
            self._waiting.charge(reader.flow, -reader.allowance)
        reader.allowance = 0
        self._reading.pop(reader, None)
        self._waiting.put(reader, reader.turn_rows, reader.flow)

    def grant(self, look_ahead_rows: int, now: float) -> list[Reader]:
        """Give turns to the streams that are next, and return them."""
        for idle in [reader for reader, until in self._reading.items() if until <= now]:
            del self._reading[idle]
        for caller in [one for one in self._over_quota if one.quota_wait(now) <= 0]:
            self._put_back(caller)
        chosen = []
        counted = self.unsent_rows + sum(reader.allowance for reader in self._reading)
        while counted < look_ahead_rows and (reader := self._take_next(now)) is not None:
            reader.allowance = reader.turn_rows
            counted += reader.turn_rows
            self._reading[reader] = now + GRANT_SECONDS
            chosen.append(reader)
        self._set_look(now)
        return chosen

    def next_grant_at(self) -> float | None:
        """When `grant` may give a turn without a further event; None: never."""
        times = [] if self._look_at is None else [self._look_at]
        if self._reading and self._waiting:
            times.append(min(self._reading.values()))
        return min(times, default=None)

    def may_read(self, reader: Reader, now: float, *, is_free: bool) -> bool:
        """Whether a stream may read now; `is_free`: it has no unanswered item.

        A free one may although it is over its quota: its items wait.
        """
        if reader.allowance and reader.caller.quota_wait(now) <= 0:
            return True
        return is_free and self._waiting.goes_first(reader.flow) and self._read_ahead(reader, now, now + GRANT_SECONDS)

    def may_accept(self, reader: Reader, now: float) -> bool:
        """Whether the items of a message that a stream has read may be accepted now.

        If not, it came long after its turn, or without one, and its caller is over its quota or enough others of its
        streams did so: it waits for another turn.
        """
        if reader in self._reading:
            return True
        return self._read_ahead(reader, now, math.inf) and reader.caller.quota_wait(now) <= 0

    def on_read(self, reader: Reader, rows: int, now: float) -> None:
        """Record a message that is accepted, in a turn or not; rows beyond the turn are charged to its stream."""
        if not reader.allowance:
            self._waiting.serve(reader.flow, rows)
        elif rows > reader.allowance:
            self._waiting.charge(reader.flow, rows - reader.allowance)
        reader.allowance = max(0, reader.allowance - rows)
        if reader.allowance:
            self._reading[reader] = now + GRANT_SECONDS
        else:
            self._reading.pop(reader, None)

    def skip(self, reader: Reader, now: float) -> bool:
        """Let a stream whose items are all answered read without its turn; returns whether it waited, and may read."""
        self._leave_place(reader)
        if reader in self._reading or not self.knows(reader) or not self._waiting.goes_first(reader.flow):
            return False
        if not self._read_ahead(reader, now, now + GRANT_SECONDS):
            return False
        self.stop_waiting(reader)
        return True

    def goes_first(self, reader: Reader, now: float) -> bool:
        """Whether a stream is within its quota and owes no row to the streams that wait for their turns."""
        is_within = reader.caller.quota is None or reader.caller.quota_wait(now) <= 0
        return is_within and self._waiting.goes_first(reader.flow)

    def take_all(self) -> list[Reader]:
        """Remove and return all streams that wait."""
        over_quota, self._over_quota = self._over_quota, {}
        return [*self._waiting.take_all(), *(reader for aside in over_quota.values() for reader in aside)]

    def knows(self, reader: Reader) -> bool:
        """Whether a stream waits, or counts as reading in its turn."""
        return reader in self._reading or reader in self._waiting or reader in self._over_quota.get(reader.caller, ())

    def stop_waiting(self, reader: Reader) -> None:
        """Let a stream wait for a turn no more."""
        self._waiting.remove(reader)
        aside = self._over_quota.get(reader.caller)
        if aside is not None:
            aside.remove(reader)
            if not len(aside):
                del self._over_quota[reader.caller]

    def leave(self, reader: Reader) -> None:
        """Forget a stream that has ended."""
        self.stop_waiting(reader)
        self._leave_place(reader)
        self._reading.pop(reader, None)
        self._waiting.forget(reader.flow)

    def reads_ahead(self, reader: Reader) -> bool:
        """Whether a stream is one of its caller's few that read without a turn."""
        return reader in self._ahead.get(reader.flow.caller, {})

    def _read_ahead(self, reader: Reader, now: float, until: float) -> bool:
        """Count a stream that reads without a turn, if not too many of its caller's do; returns whether it is counted.

        Without a message it counts for a moment only, like one that has a turn; while its caller is over its quota, for
        as long as it reads: what all of them send would wait in memory.
        """
        ahead = self._ahead.setdefault(reader.flow.caller, {})
        if reader not in ahead and len(ahead) >= MAX_AHEAD:
            if reader.caller.quota_wait(now) > 0:
                return False
            for idle in [one for one, end in ahead.items() if end <= now]:
                del ahead[idle]
            if len(ahead) >= MAX_AHEAD:
                return False
        ahead[reader] = until
        return True

    def _leave_place(self, reader: Reader) -> None:
        ahead = self._ahead.get(reader.flow.caller)
        if ahead is not None:
            ahead.pop(reader, None)
            if not ahead:
                del self._ahead[reader.flow.caller]

    def _take_next(self, now: float) -> Reader | None:
        """The next stream that is within its quota; those that are not are set aside until they are."""
        while (reader := self._waiting.peek()) is not None:
            if reader.caller.quota_wait(now) <= 0:
                self._waiting.pop()
                if reader.caller in self._over_quota:
                    self._put_back(reader.caller)
                return reader
            aside = self._over_quota.setdefault(reader.caller, _SetAside())
            aside.add(reader, self._waiting.entries[reader].leaf.start)
            self._waiting.remove(reader)
        return None

    def _put_back(self, caller: Caller) -> None:
        """Let the next stream of a caller wait for its turn again: only one, its turn may use up the quota."""
        aside = self._over_quota[caller]
        if aside.latest is not None and aside.latest in self._waiting:
            return
        reader = aside.pop()
        if not len(aside):
            del self._over_quota[caller]
        self._waiting.put(reader, reader.turn_rows, reader.flow)

    def _set_look(self, now: float) -> None:
        """Set when the quotas are looked at next; not later than was set before."""
        if not self._over_quota:
            self._look_at = None
            return
        pauses = [pause for caller in self._over_quota if (pause := caller.quota_wait(now)) > 0]
        at = now + min(pauses, default=QUOTA_LOOK_SECONDS)
        if self._look_at is None or self._look_at <= now or at < self._look_at:
            self._look_at = min(at, now + QUOTA_LOOK_SECONDS)


class _SetAside:
    """Streams of a caller that is over its quota, by the tags with which they waited."""

    def __init__(self) -> None:
        self.latest: Reader | None = None  # that was taken
        self._entries: dict[Reader, int] = {}
        self._heap: list[tuple[float, int, Reader]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, reader: object) -> bool:
        return reader in self._entries

    def __iter__(self) -> Iterator[Reader]:
        return iter(self._entries)

    def add(self, reader: Reader, tag: float) -> None:
        """Set a stream aside."""
        number = self._entries[reader] = next(self._numbers)
        heapq.heappush(self._heap, (tag, number, reader))

    def remove(self, reader: Reader) -> None:
        """Forget a stream; its place in the heap is empty then."""
        self._entries.pop(reader, None)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [row for row in self._heap if self._entries.get(row[2]) == row[1]]
            heapq.heapify(self._heap)

    def pop(self) -> Reader:
        """Take the next stream; there must be one."""
        while True:
            _, number, reader = heapq.heappop(self._heap)
            if self._entries.get(reader) == number:
                del self._entries[reader]
                self.latest = reader
                return reader


class TurnGate:
    """Lets the streams of one model wait for their turns. Loop thread only."""

    def __init__(self, interactive_share: float, clock: Clock, look_ahead_rows: Callable[[], int]) -> None:
        self._turns = ReadTurns(interactive_share)
        self._clock = clock
        self._look_ahead_rows = look_ahead_rows
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._turns)

    def may_read(self, reader: Reader, *, is_free: bool) -> bool:
        """Whether a stream may read now.

        Args:
            reader: the stream.
            is_free: whether it has no unanswered item. It reads without a turn then, if it owes nothing to those that
                wait, and few streams of its caller do so: if it has nothing more to send, only a read tells.
        """
        return self._is_closed or self._turns.may_read(reader, self._clock.monotonic(), is_free=is_free)

    async def wait(self, reader: Reader) -> None:
        """Wait until a stream that may not read now has its turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reader.on_turn = lambda: None if turn.done() else turn.set_result(None)
        self._turns.wait(reader)
        self.grant()
        try:
            await turn
        except asyncio.CancelledError:
            self._turns.stop_waiting(reader)
            raise
        finally:
            reader.on_turn = lambda: None

    def skip(self, reader: Reader) -> None:
        """Let a stream that waits read without its turn if it owes nothing: it has no unanswered item any more."""
        if self._turns.skip(reader, self._clock.monotonic()):
            reader.on_turn()

    def close(self) -> None:
        """Let all streams read from now on: their model is served no more, so nothing they send is accepted here."""
        self._is_closed = True
        for reader in self._turns.take_all():
            reader.on_turn()

    def leave(self, reader: Reader) -> None:
        """Forget a stream that has ended, or waits no more."""
        self._turns.leave(reader)

    def may_accept(self, reader: Reader) -> bool:
        """Whether the items of a message that a stream has read may be accepted now, and not in its next turn."""
        return self._is_closed or self._turns.may_accept(reader, self._clock.monotonic())

    def reads_ahead(self, reader: Reader) -> bool:
        """Whether a stream is one of its caller's few that read without a turn."""
        return self._turns.reads_ahead(reader)

    def on_read(self, reader: Reader, rows: int) -> None:
        """Record a message that is accepted."""
        self._turns.on_read(reader, rows, self._clock.monotonic())

    def add_unsent(self, rows: int) -> None:
        """Count an item that was read and waits for the device."""
        self._turns.unsent_rows += rows

    def remove_unsent(self, rows: int) -> None:
        """Subtract an item that waits no more."""
        self._turns.unsent_rows -= rows
        if len(self._turns):
            self._wake_after(0.0)

    def grant(self) -> None:
        """Give the turns that are due."""
        now = self._clock.monotonic()
        for reader in self._turns.grant(self._look_ahead_rows(), now):
            reader.on_turn()
        at = self._turns.next_grant_at()
        if at is not None:
            self._wake_after(max(GRANT_SECONDS, at - now))

    def _wake_after(self, seconds: float) -> None:
        """Grant again after some time, if that is not done earlier anyway."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.grant()
