"""Turns to read: a stream reads its next message when its rows are needed, in fair order. Pure; time is an argument."""

import heapq
import itertools
from collections.abc import Callable

from inference.server.scheduling.callers import Caller, Flow
from inference.server.scheduling.fair_queue import FairQueue

TURN_ROWS = 32  # that a stream of weight 1 may read in its turn; the last message may have more
MAX_TURN_ROWS = 512
GRANT_SECONDS = 0.01  # a message that was already received is read within this time; a later one was not there yet


class Reader:
    """One stream. It waits for a turn, reads messages until its rows are used up, and waits again."""

    def __init__(self, caller: Caller, flow: Flow) -> None:
        self.caller = caller
        self.flow = flow
        self.turn_rows = max(1, min(MAX_TURN_ROWS, round(TURN_ROWS * flow.weight)))
        self.allowance = 0  # rows that it may still read in its turn
        self.on_turn: Callable[[], None] = lambda: None


class ReadTurns:
    """The streams that want to read messages for one model.

    Turns are given while the rows that were read and not yet sent to the device, with those that may be read now, are
    below the look-ahead. A stream that has a turn and no message counts for a moment only: it keeps the rest of its
    turn, and holds nobody back.
    """

    def __init__(self, interactive_share: float) -> None:
        self.unsent_rows = 0  # of stream items that were read and not sent
        self._waiting: FairQueue[Reader] = FairQueue(interactive_share)
        self._over_quota: list[tuple[float, int, Reader]] = []  # heap: when it is within its quota again
        self._reading: dict[Reader, float] = {}  # until when each counts
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._over_quota)

    def wait(self, reader: Reader) -> None:
        """Let a stream wait for its turn; `grant` gives it."""
        self._waiting.put(reader, reader.turn_rows, reader.flow)

    def grant(self, look_ahead_rows: int, now: float) -> list[Reader]:
        """Give turns to the streams that are next, and return them."""
        for idle in [reader for reader, until in self._reading.items() if until <= now]:
            del self._reading[idle]
        while self._over_quota and self._over_quota[0][0] <= now:
            self.wait(heapq.heappop(self._over_quota)[2])
        chosen = []
        counted = self.unsent_rows + sum(reader.allowance for reader in self._reading)
        while counted < look_ahead_rows and (reader := self._take_next(now)) is not None:
            reader.allowance = reader.turn_rows
            counted += reader.turn_rows
            self._reading[reader] = now + GRANT_SECONDS
            chosen.append(reader)
        return chosen

    def next_grant_at(self) -> float | None:
        """When `grant` may give a turn without a further event; None: never."""
        times = [self._over_quota[0][0]] if self._over_quota else []
        if self._reading and self._waiting:
            times.append(min(self._reading.values()))
        return min(times, default=None)

    def on_read(self, reader: Reader, rows: int, now: float) -> None:
        """Record a message that a stream has read in its turn; rows beyond the turn are charged to it."""
        if rows > reader.allowance:
            self._waiting.charge(reader.flow, rows - reader.allowance)
        reader.allowance = max(0, reader.allowance - rows)
        reader.caller.use_quota(rows, now)
        if reader.caller.quota_wait(now) > 0:
            reader.allowance = 0
        if reader.allowance:
            self._reading[reader] = now + GRANT_SECONDS
        else:
            self._reading.pop(reader, None)

    def leave(self, reader: Reader) -> None:
        """Forget a stream that has ended."""
        self._waiting.remove(reader)
        self._over_quota = [row for row in self._over_quota if row[2] is not reader]
        heapq.heapify(self._over_quota)
        self._reading.pop(reader, None)

    def _take_next(self, now: float) -> Reader | None:
        """The next stream that is within its quota; those that are not are set aside until they are."""
        while (reader := self._waiting.peek()) is not None:
            pause = reader.caller.quota_wait(now)
            if pause <= 0:
                return self._waiting.pop()
            self._waiting.remove(reader)
            heapq.heappush(self._over_quota, (now + pause, next(self._numbers), reader))
        return None
