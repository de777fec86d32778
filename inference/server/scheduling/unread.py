"""Ends the connections of callers that do not take their answers.

gRPC keeps an answered call, with its answer, until the caller has given it room for it: a caller that never does (a
window of zero) would keep its calls in memory for as long as it stays connected, and a stream in the middle of a write.
gRPC has no way to end such a call but with its connection. Those of a Unix socket have no names of their own: local
callers are not disconnected. Loop thread only.
"""

import math
from collections import Counter, deque
from collections.abc import Awaitable, Hashable, Mapping
from typing import Protocol

from inference.server.scheduling.uploads import Connections

LOOK_SECONDS = 0.5  # between two looks; what is unread for a shorter time is on its way
PAUSE_SECONDS = 2 * LOOK_SECONDS  # between two looks: the process did not run, or its loop
UNREAD_SECONDS = 60.0  # a connection none of whose answers is taken for so long is ended; a slow one makes progress
STOP_SECONDS = 10.0  # the same since the server began to stop: it waits for these calls
UNREAD_SHARE = 0.1  # of the calls that the limit of memory has room for: so many may be unread
MIN_UNREAD = 64  # answers that may be unread under any limit
MAX_ENDS = 256  # calls that are ended in one tick: ending one takes time of the loop


class Calls(Protocol):
    """The calls that gRPC keeps."""

    @property
    def count(self) -> int:
        """All of them: without an answer yet, and with one that its caller has not taken."""
        ...

    def find_answered(self) -> Mapping[Hashable, str]:
        """Those with an answer that its caller has not taken, with gRPC's names of their peers."""
        ...


class UnreadAnswers:
    """Answers, and messages of streams, that callers have not taken."""

    def __init__(self, calls: Calls, connections: Connections) -> None:
        self.is_stopping = False  # the server waits for all calls to end
        # Calls and writes since the last look of connections with something unread. Whoever ends a call counts it here,
        # if its connection is there: a function for it would be one more in each call.
        self.ended: dict[str, int] = {}
        self._calls, self._connections = calls, connections
        self._writes: dict[Hashable, str] = {}
        self._seen: dict[Hashable, tuple[str, float]] = {}  # with the time of the first look
        self._taken: dict[str, float] = {}  # when the connection last took something that had been seen
        self._ending: deque[tuple[str, int]] = deque()  # connections with their calls
        self._last_look = self._next_look = -math.inf
        self._stopping_since: float | None = None

    def add_to(self, open_calls: int) -> int:
        """All calls: those that are open, and those whose callers have not taken the answer."""
        return max(open_calls, self._calls.count)

    async def write(self, connection: str, sending: Awaitable[object]) -> None:
        """Await what gRPC sends to a caller before the status; it counts as unread until the caller has taken it."""
        write = self.begin_write(connection)
        try:
            await sending
        finally:
            self.end_write(write)

    def begin_write(self, connection: str) -> Hashable:
        """Count a message as unread; `end_write` must follow, with what this returns."""
        write = object()
        self._writes[write] = connection
        return write

    def end_write(self, write: Hashable) -> None:
        """The message was taken, or its call has ended."""
        connection = self._writes.pop(write)
        if connection in self.ended:
            self.ended[connection] += 1

    def tick(self, now: float, open_calls: int, max_calls: int) -> None:
        """Look for what is unread, and end connections.

        Args:
            now: the clock, seconds.
            open_calls: calls without an answer yet.
            max_calls: that the limit of memory has room for; the connections with most are ended beyond a share of it.
        """
        if self.is_stopping and self._stopping_since is None:
            self._stopping_since = now
        if now >= self._next_look and (self._seen or self._writes or self._calls.count > open_calls):
            pause = now - self._last_look
            self._last_look, self._next_look = now, now + LOOK_SECONDS
            was_paused = bool(self._seen) and pause > PAUSE_SECONDS
            if was_paused:
                self._postpone(pause - LOOK_SECONDS, now)
            self._look(now)
            most = max(MIN_UNREAD, int(UNREAD_SHARE * max_calls))
            self._ending = deque(() if was_paused else self._choose(now, most))
        ended, names = 0, []
        while self._ending and ended < MAX_ENDS:
            name, calls = self._ending.popleft()
            names.append(name)
            ended += calls
        if names:
            self._connections.close(names)

    def _postpone(self, seconds: float, now: float) -> None:
        """Count so much less time for all that is known, since the process did not run.

        What its callers have taken meanwhile is known only when the tasks of these calls have gone on.
        """
        self._seen = {one: (name, since + seconds) for one, (name, since) in self._seen.items()}
        self._taken = {name: taken + seconds for name, taken in self._taken.items()}
        if self._stopping_since is not None:
            self._stopping_since = min(now, self._stopping_since + seconds)

    def _look(self, now: float) -> None:
        unread = {**self._calls.find_answered(), **self._writes}
        self._taken.update((name, now) for one, (name, _) in self._seen.items() if one not in unread)
        fresh = Counter(name for one, name in unread.items() if one not in self._seen)
        # What ended since the last look was taken at once, but for what is unread now.
        self._taken.update((name, now) for name, ended in self.ended.items() if ended > fresh[name])
        self._seen = {one: self._seen.get(one, (name, now)) for one, name in unread.items()}
        names = set(unread.values())
        self._taken = {name: taken for name, taken in self._taken.items() if name in names}
        self.ended = dict.fromkeys(names, 0)

    def _choose(self, now: float, most: int) -> list[tuple[str, int]]:
        """The connections to be ended, with their calls: those that are too slow, and those with most of too many.

        A stream's consumer may pause for any time, so a message that waits for it makes no connection too slow, unless
        the server stops: from then on it has as much time as any.
        """
        can_close = self._connections.can_close
        seen = {one: (name, since) for one, (name, since) in self._seen.items() if since <= now - LOOK_SECONDS}
        waiting = {one: (name, since) for one, (name, since) in seen.items() if can_close(name)}
        counts = Counter(name for name, _ in waiting.values())
        since_of: dict[str, float] = {}
        for one, (name, since) in waiting.items():
            if self._stopping_since is not None:
                since_of[name] = max(self._stopping_since, min(since, since_of.get(name, math.inf)))
            elif one not in self._writes:
                since_of[name] = min(since, since_of.get(name, math.inf))
        limit = UNREAD_SECONDS if self._stopping_since is None else STOP_SECONDS
        late = {name for name, since in since_of.items() if now - max(since, self._taken.get(name, since)) >= limit}
        chosen = [(name, counts[name]) for name in late]
        excess = len(waiting) - sum(calls for _, calls in chosen) - most
        for name, calls in counts.most_common():
            if excess <= 0:
                break
            if name not in late:
                chosen.append((name, calls))
                excess -= calls
        return chosen
