"""The loop of `predict_many`: takes items, sends them, returns outcomes, opens another stream after a broken one."""

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic

from hotslot_client._convert import Task, error_from_status, join_items, serialize
from hotslot_client._exchange import Event, Exchange
from hotslot_client._window import ItemWindow, Outage, StreamRules
from hotslot_client.errors import DeadlineExceeded, HotslotError, Unavailable
from hotslot_client.types import AnswerT, ItemT, Outcome

BURST_SECONDS = 0.002  # for items that share a message
END_SECONDS = 2.0  # for the end of a stream whose outcomes are all there


class StreamRun(Generic[ItemT, AnswerT]):
    """One `predict_many`."""

    def __init__(
        self,
        task: Task[ItemT, AnswerT],
        rules: StreamRules,
        open_exchange: "Callable[[queue.SimpleQueue[Event]], Exchange]",
        deadline: float | None,
    ) -> None:
        self._task = task
        self._rules = rules
        self._open = open_exchange
        self._deadline = deadline
        self._window: ItemWindow[ItemT, AnswerT] = ItemWindow(rules)
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._exchange: Exchange | None = None
        self._outage = Outage(rules)
        self._waited = 0.0  # seconds without an event
        self._open_at = 0.0  # when the next stream may be opened

    def run(self, items: Iterable[ItemT]) -> Iterator[Outcome[ItemT, AnswerT]]:
        """The outcomes of all items.

        Raises:
            HotslotError: see `Client.predict_many`.
        """
        source, is_exhausted = iter(items), False
        try:
            while True:
                self._receive(0.0)
                yield from self._window.ready()
                self._send()
                if not is_exhausted and self._window.has_room:
                    is_exhausted = not self._take_some(source)
                elif is_exhausted and self._window.is_done:
                    break
                else:
                    self._receive(self._wait_seconds())
            yield from self._window.ready()
            self._finish()
        finally:
            if self._exchange is not None:
                self._exchange.cancel()

    def _take_some(self, source: Iterator[ItemT]) -> bool:
        """Take the items that are there at once; False if there are no more."""
        until = time.monotonic() + BURST_SECONDS
        while self._window.has_room:
            if not self._take(source):
                return False
            if time.monotonic() >= until:
                break
        return True

    def _take(self, source: Iterator[ItemT]) -> bool:
        """Take an item; False if there is none."""
        try:
            item = next(source)
        except StopIteration:
            return False
        try:
            request = serialize(self._task.build_request(item))
        except (OSError, UnicodeError) as error:
            self._window.add_failed(item, error)
        else:
            self._window.add(item, request)
        return True

    def _send(self) -> None:
        now = time.monotonic()
        if now < self._open_at:
            return
        while entries := self._window.next_message(now):
            if self._exchange is None:
                self._exchange = self._open(self._inbox)
            self._exchange.send(join_items((entry.item_id, entry.request) for entry in entries))

    def _wait_seconds(self) -> float:
        """How long to wait for an event."""
        now = time.monotonic()
        times = [now + self._rules.stall_seconds - self._waited]
        if self._deadline is not None:
            times.append(self._deadline)
        if self._open_at > now:
            times.append(self._open_at)
        elif (again := self._window.next_time()) is not None:
            times.append(again)
        return max(0.001, min(times) - now)

    def _receive(self, seconds: float) -> None:
        """Handle the events that are there, after waiting for the first."""
        began = time.monotonic()
        try:
            event = self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait()
            self._waited = 0.0
            while True:
                self._handle(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            now = time.monotonic()
            self._waited += now - began
            self._check_limits(now)

    def _check_limits(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline and not self._window.is_done:
            raise DeadlineExceeded("the stream has reached its deadline")
        if self._window.has_sent and self._waited >= self._rules.stall_seconds:
            self._waited = 0.0
            self._break(Unavailable(f"no outcome for {self._rules.stall_seconds:g} s"))

    def _handle(self, event: Event) -> None:
        if event.exchange is not self._exchange:
            return  # of a stream that was given up
        if event.response is not None:
            self._read(event.response)
        elif event.error is not None or self._window.has_sent:
            self._break(event.error or Unavailable("the server ended the stream without all outcomes"))
        else:
            self._exchange = None

    def _read(self, data: bytes) -> None:
        now = time.monotonic()
        for result in self._task.stream_response.FromString(data).results:
            entry = self._window.find(result.item_id)
            if entry is None:
                continue
            if result.HasField("response"):
                self._window.on_answer(entry, self._task.parse_answer(entry.item, result.response))
                self._outage.on_progress()
            else:
                error = error_from_status(result.error)
                self._window.on_error(entry, error, now)
                if not error.is_retryable:
                    self._outage.on_progress()

    def _break(self, error: HotslotError) -> None:
        """The stream is over: what it leaves is sent again later."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
        self._window.on_break(error)
        now = time.monotonic()
        if not self._window.is_done:
            self._open_at = now + self._outage.on_break(error, now)

    def _finish(self) -> None:
        """All outcomes are there: end the stream in good order."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.half_close()
        try:
            while self._inbox.get(timeout=END_SECONDS).response is not None:
                pass
        except queue.Empty:
            exchange.cancel()
