"""The items of `predict_many` that have no outcome yet: which to send, which to send again, when to give up.

Pure: no call, no clock, no thread. The synchronous and the asyncio client drive it.
"""

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from hotslot_client.errors import ClientClosed, HotslotError, Overloaded
from hotslot_client.types import AnswerT, ItemT, Outcome

MAX_MESSAGE_ITEMS, MAX_MESSAGE_BYTES = 64, 1 << 20  # of one message to the server
MIN_FAILURES = 4  # broken streams before an outage is reported
MAX_SUSPICIONS = 3  # streams that broke while an item was alone on them, before the item is given up


@dataclass(frozen=True)
class StreamRules:
    """How a stream of items is run.

    Attributes:
        window: items taken from the source whose outcome the caller has not received yet.
        window_bytes: of their requests; one item may be larger.
        is_ordered: outcomes come in the order of the items.
        item_attempts: how often an item is sent that is refused with a retryable error.
        max_request_bytes: of one item.
        first_pause, max_pause: seconds between attempts, where the server does not say; each is three times as long.
        outage_seconds: of streams that break without any outcome, after which the call fails.
        stall_seconds: of waiting without any outcome, after which an open stream is taken for broken.
    """

    window: int = 64
    window_bytes: int = 64 << 20
    is_ordered: bool = True
    item_attempts: int = 5
    max_request_bytes: int = 32 << 20
    first_pause: float = 0.2
    max_pause: float = 3.0
    outage_seconds: float = 60.0
    stall_seconds: float = 120.0


@dataclass
class Entry(Generic[ItemT]):
    """An item without an outcome."""

    index: int
    item: ItemT
    request: bytes
    attempts: int = 0  # answers of the server that asked to try again
    suspicions: int = 0

    @property
    def item_id(self) -> str:
        """Its name on the stream."""
        return str(self.index)


class ItemWindow(Generic[ItemT, AnswerT]):
    """The items between source and caller."""

    def __init__(self, rules: StreamRules) -> None:
        self._rules = rules
        self._taken = 0
        self._delivered = 0
        self._bytes = 0  # of requests without an outcome
        self._queue: deque[Entry[ItemT]] = deque()
        self._later: list[tuple[float, int, Entry[ItemT]]] = []  # a heap: refused, to be sent again at a time
        self._sent: dict[str, Entry[ItemT]] = {}
        self._ready: deque[Outcome[ItemT, AnswerT]] = deque()
        self._waiting: dict[int, Outcome[ItemT, AnswerT]] = {}  # outcomes whose turn it is not, by index
        self._is_careful = False  # after a stream broke without an outcome: one item at a time
        self.unexpected = 0  # outcomes of no open item

    # The source.

    @property
    def has_room(self) -> bool:
        """Whether another item may be taken from the source."""
        rules = self._rules
        return self._taken - self._delivered < rules.window and self._bytes < rules.window_bytes

    @property
    def is_done(self) -> bool:
        """Whether every item that was taken has its outcome."""
        return not (self._queue or self._later or self._sent)

    @property
    def has_sent(self) -> bool:
        """Whether an item waits for the server."""
        return bool(self._sent)

    def add(self, item: ItemT, request: bytes) -> None:
        """Take an item."""
        entry = Entry(self._taken, item, request)
        self._taken += 1
        if len(request) > self._rules.max_request_bytes:
            text = f"the item has {len(request)} bytes, a message at most {self._rules.max_request_bytes}"
            self._deliver(entry, Outcome(entry.index, item, error=Overloaded(text)))
            return
        self._bytes += len(request)
        self._queue.append(entry)

    def add_failed(self, item: ItemT, error: Exception) -> None:
        """Take an item that cannot be sent."""
        entry = Entry(self._taken, item, b"")
        self._taken += 1
        self._deliver(entry, Outcome(entry.index, item, error=error))

    # The server.

    def next_message(self, now: float) -> list[Entry[ItemT]]:
        """The items of the next message; empty if there is nothing to send now."""
        while self._later and self._later[0][0] <= now:
            self._queue.append(heapq.heappop(self._later)[2])
        entries: list[Entry[ItemT]] = []
        size = 0
        while self._queue and not (self._is_careful and (self._sent or entries)):
            size += len(self._queue[0].request)
            if entries and (size > MAX_MESSAGE_BYTES or len(entries) == MAX_MESSAGE_ITEMS):
                break
            entries.append(self._queue.popleft())
        self._sent.update((entry.item_id, entry) for entry in entries)
        return entries

    def next_time(self) -> float | None:
        """When a refused item is to be sent again; None if there is none."""
        return self._later[0][0] if self._later else None

    def find(self, item_id: str) -> Entry[ItemT] | None:
        """The item that waits for the server under this name; None and counted if there is none."""
        entry = self._sent.get(item_id)
        if entry is None:
            self.unexpected += 1
        return entry

    def on_answer(self, entry: Entry[ItemT], answer: AnswerT) -> None:
        """The server has answered an item."""
        self._finish(entry, Outcome(entry.index, entry.item, answer=answer))

    def on_error(self, entry: Entry[ItemT], error: HotslotError, now: float) -> None:
        """The server has refused an item, which is sent again if that may help."""
        entry.attempts += 1
        if not error.is_retryable or entry.attempts >= self._rules.item_attempts:
            self._finish(entry, Outcome(entry.index, entry.item, error=error))
            return
        self._is_careful = False
        del self._sent[entry.item_id]
        pause = choose_pause(self._rules, entry.attempts, error)
        heapq.heappush(self._later, (now + pause, entry.index, entry))

    def on_break(self, error: HotslotError) -> None:
        """The stream has ended: what was sent on it without an outcome is sent again, in order.

        An item that was alone on several broken streams is given up, unless the server or the connection was away.
        """
        if len(self._sent) == 1 and error.code != "UNAVAILABLE" and not error.reason:
            (entry,) = self._sent.values()
            entry.suspicions += 1
            if entry.suspicions >= MAX_SUSPICIONS:
                self._finish(entry, Outcome(entry.index, entry.item, error=error))
        self._queue.extendleft(sorted(self._sent.values(), key=lambda entry: -entry.index))
        self._sent.clear()
        self._is_careful = not (error.code == "UNAVAILABLE" or error.reason)

    # The caller.

    def ready(self) -> Iterator[Outcome[ItemT, AnswerT]]:
        """The outcomes that the caller may have now."""
        while self._ready:
            yield self._ready.popleft()

    def _finish(self, entry: Entry[ItemT], outcome: Outcome[ItemT, AnswerT]) -> None:
        del self._sent[entry.item_id]
        self._bytes -= len(entry.request)
        self._is_careful = False
        self._deliver(entry, outcome)

    def _deliver(self, entry: Entry[ItemT], outcome: Outcome[ItemT, AnswerT]) -> None:
        if not self._rules.is_ordered:
            self._delivered += 1
            self._ready.append(outcome)
            return
        self._waiting[entry.index] = outcome
        while self._delivered in self._waiting:
            self._ready.append(self._waiting.pop(self._delivered))
            self._delivered += 1


@dataclass
class Outage:
    """Streams that have broken one after the other without any outcome."""

    rules: StreamRules
    failures: int = 0
    since: float = 0.0  # of the first

    def on_progress(self) -> None:
        """An outcome has arrived."""
        self.failures = 0

    def on_break(self, error: HotslotError, now: float) -> float:
        """How many seconds to wait before the next stream.

        Raises:
            HotslotError: waiting does not help, or did not.
        """
        if error.code in FINAL_CODES or isinstance(error, ClientClosed):
            raise error
        self.failures += 1
        if self.failures == 1:
            self.since = now
        limit = self.rules.outage_seconds
        # A caller may have kept its outcomes waiting meanwhile: a few attempts are made whatever the clock says.
        if now - self.since >= limit and (self.failures >= MIN_FAILURES or not limit):
            raise error
        if self.failures == 1 and error.code == "UNAVAILABLE":
            return random.uniform(0.0, 0.1)  # noqa: S311  another server may be there
        return choose_pause(self.rules, self.failures, error)


# A stream that ends with one of these is not opened again: the next one would end the same way.
FINAL_CODES = frozenset(
    {
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    }
)


def choose_pause(rules: StreamRules, failures: int, error: HotslotError) -> float:
    """Seconds until the next attempt: what the server asked for, else the policy's, up to a fifth more or less."""
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds
    pause = min(rules.max_pause, rules.first_pause * 3.0 ** min(failures - 1, 10))
    return pause * random.uniform(0.8, 1.2)  # noqa: S311  so that not all callers come back at once
