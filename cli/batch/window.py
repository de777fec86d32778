"""Which rows are sent next, and what becomes of a row whose outcome, or whose stream's end, arrives. Pure.

A row is in the window from the moment it was read until its outcome is final. It waits, or it is out on one of the
streams. What a stream leaves without an outcome waits again: predictions are pure. If a stream breaks for another
reason than its server's absence, one of its rows may be the cause: a row that was out on several such streams is sent
alone, and if its stream breaks again it is the row that has failed.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cli.batch.ordering import Key

STREAM_ROWS = 32  # out on one stream; a server with default settings reads no more
MAX_MESSAGE_BYTES = 4 << 20  # of a message with more than one row
MAX_MESSAGE_ROWS = 16
MAX_TRIES = 8  # of a row that is refused for a reason that may pass
MAX_STRIKES = 2  # broken streams after which a row is sent alone
FIRST_DELAY, MAX_DELAY = 0.1, 10.0  # seconds
_MAX_DOUBLINGS = 10
_MAX_DIGITS = 18  # of a row's number

# Codes of google.rpc.Status.
_DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED, _ABORTED, _UNAVAILABLE = 4, 8, 10, 14
_MAY_PASS = {_DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED, _ABORTED, _UNAVAILABLE}
_REASONS_MAY_PASS = {"PREPARE_TIMEOUT"}
# The whole batch is wrong, not the row.
STOPPING_REASONS = {"MODEL_UNKNOWN", "MODEL_REQUIRED", "TOKEN_MISSING", "TOKEN_UNKNOWN"}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no answer."""

    code: str  # name of the gRPC code
    number: int  # of the code
    reason: str
    message: str
    field: str = ""
    retry_seconds: float | None = None  # as the server advises


@dataclass(slots=True)
class Item:
    """One row in the window."""

    key: Key
    message: Any  # the request of its task
    size: int  # bytes
    row: Any = None  # what the results need of it
    number: int = 0  # its id on the streams
    tries: int = 0
    strikes: int = 0
    stream: int | None = None  # on which it is out

    @property
    def is_suspect(self) -> bool:
        """Whether it is sent alone."""
        return self.strikes >= MAX_STRIKES


class StopBatch(Exception):
    """No row can be answered until the user changes something; has the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Window:
    """The rows that were read and have no final outcome."""

    def __init__(self, max_out: int, max_rows: int, max_bytes: int) -> None:
        """An empty window.

        Args:
            max_out: rows out on all streams together.
            max_rows: rows that wait or are out.
            max_bytes: of their requests; the last row that is read may exceed it.
        """
        self._max_out = max_out
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._items: dict[int, Item] = {}
        self._bytes = 0
        self._waiting: deque[int] = deque()  # in order of reading
        self._delayed: list[tuple[float, int]] = []  # heap: when a row may be sent again
        self._out: dict[int, set[int]] = {}  # by stream
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_room(self) -> bool:
        """Whether another row may be read: rows and bytes are below their limits."""
        return len(self._items) < self._max_rows and self._bytes < self._max_bytes

    @property
    def free_rows(self) -> int:
        """How many rows may be read."""
        return self._max_rows - len(self._items) if self.has_room else 0

    @property
    def free_bytes(self) -> int:
        """Bytes that they may have together; the last one may exceed it."""
        return max(0, self._max_bytes - self._bytes)

    def add(self, item: Item) -> None:
        """Add a row that was read."""
        self._last_number += 1
        item.number = self._last_number
        self._items[item.number] = item
        self._bytes += item.size
        self._waiting.append(item.number)

    def take(self, stream: int, now: float, max_rows: int = MAX_MESSAGE_ROWS) -> list[Item]:
        """The rows of the next message on a stream; none if nothing may be sent on it now."""
        out = self._out.setdefault(stream, set())
        free = self._max_out - sum(map(len, self._out.values()))
        max_rows = min(max_rows, free, STREAM_ROWS - len(out))
        if any(self._items[number].is_suspect for number in out):
            return []
        while self._delayed and self._delayed[0][0] <= now:
            self._waiting.appendleft(heapq.heappop(self._delayed)[1])
        found: list[Item] = []
        size = 0
        while self._waiting and len(found) < max_rows:
            item = self._items[self._waiting[0]]
            if (found and size + item.size > MAX_MESSAGE_BYTES) or (item.is_suspect and out):
                break
            self._waiting.popleft()
            item.stream = stream
            out.add(item.number)
            found.append(item)
            size += item.size
            if item.is_suspect:
                break
        return found

    def next_due(self) -> float | None:
        """When the first delayed row may be sent again; None if there is none."""
        return self._delayed[0][0] if self._delayed else None

    def has_out(self, stream: int) -> bool:
        """Whether rows are out on a stream."""
        return bool(self._out.get(stream))

    @property
    def has_waiting(self) -> bool:
        """Whether a row waits that may be sent now."""
        return bool(self._waiting)

    def on_answer(self, stream: int, item_id: str) -> Item | None:
        """Remove and return an answered row; None if it is not out on this stream."""
        item = self._find(stream, item_id)
        if item is not None:
            self._remove(item)
        return item

    def on_failure(self, stream: int, item_id: str, failure: Failure, now: float) -> Item | None:
        """Remove and return a row that has failed for good; None if it is sent again, or not out on this stream.

        Raises:
            StopBatch: every further row would fail for the same reason.
        """
        item = self._find(stream, item_id)
        if failure.reason in STOPPING_REASONS:
            raise StopBatch(failure)
        if item is None:
            return None
        if failure.number != _UNAVAILABLE:  # a server that cannot answer now says nothing about the row
            item.tries += 1
        may_pass = failure.number in _MAY_PASS or failure.reason in _REASONS_MAY_PASS
        if not may_pass or item.tries >= MAX_TRIES:
            self._remove(item)
            return item
        self._out[stream].discard(item.number)
        item.stream = None
        delay = retry_delay(item.tries) if failure.retry_seconds is None else failure.retry_seconds
        heapq.heappush(self._delayed, (now + delay, item.number))
        return None

    def on_stream_end(self, stream: int, *, is_broken: bool) -> Iterator[Item]:
        """Put the rows that a stream leaves before all others; yields those that have failed for good.

        Args:
            stream: which has ended.
            is_broken: not because its server is away, or drains.
        """
        numbers = sorted(self._out.pop(stream, ()))
        for number in reversed(numbers):
            item = self._items[number]
            item.stream = None
            was_alone = item.is_suspect
            item.strikes += is_broken
            if is_broken and was_alone:
                self._remove(item)
                yield item
            else:
                self._waiting.appendleft(number)

    def _find(self, stream: int, item_id: str) -> Item | None:
        is_number = item_id.isdecimal() and len(item_id) <= _MAX_DIGITS
        item = self._items.get(int(item_id)) if is_number else None
        return item if item is not None and item.stream == stream else None

    def _remove(self, item: Item) -> None:
        del self._items[item.number]
        self._bytes -= item.size
        if item.stream is not None and item.stream in self._out:
            self._out[item.stream].discard(item.number)


def retry_delay(tries: int) -> float:
    """Seconds until a further attempt, after so many."""
    return float(min(MAX_DELAY, FIRST_DELAY * 2 ** min(tries, _MAX_DOUBLINGS)))
