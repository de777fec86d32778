"""Sends queued requests to one runner, one by one, while it holds fewer rows than a small window."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from common import reasons
from common.clock import Clock
from common.records import record
from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.server.request import Failure, Flow, InputId, Outcome, PendingRequest, Priority, read_results
from inference.server.scheduling.device_share import DeviceShare, DeviceUser
from inference.server.scheduling.fair_queue import FairQueue, QueueDepth
from inference.server.scheduling.in_flight import (
    WINDOW_CALLS,
    Estimate,
    InFlight,
    SlowPictures,
    WorkInFlight,
    adapt_window,
    estimate_request,
    is_too_late,
    limit_window,
    may_send,
    may_send_copy,
    must_wait,
)
from inference.server.scheduling.limits import LOST_HEARTBEATS, LimitRules, find_hang, limit_seconds
from inference.wire import Picture

LOOK_AHEAD_SECONDS = 0.05  # of device time; the next messages are read within this time
MAX_LOOK_AHEAD_ROWS = 4096
JOIN_SECONDS = 0.001  # between two frames of bulk items, while the runner holds enough to go on with
JOIN_ITEMS = 4  # which is enough
MIN_DECODING_SHARE = 0.5  # of the estimate, which is rounded up: what takes even longer than this is dropped
TOO_LATE = Failure(reasons.DEADLINE_EXPIRED, "it could no longer be answered in time")


class RunnerPort(Protocol):
    """The part of a runner process that the dispatcher uses."""

    def send_items(self, items: Sequence[tuple[runner_pb2.Item, Picture]]) -> None:
        """Send items, each with its picture, so that no picture is copied."""
        ...

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Cancel items."""
        ...


@record
class Computed:
    """The runner's result for one item."""

    outcome: Outcome
    prepared_seconds: float
    computed_seconds: float


class DispatchListener(Protocol):
    """Receives the outcomes of items, on the loop's thread."""

    def on_busy(self) -> None:
        """The runner gets its first item; it uses the slot until `on_idle`."""
        ...

    def on_sent(self, request: PendingRequest) -> None:
        """A request was sent."""
        ...

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """An item was answered."""
        ...

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """An item failed."""
        ...

    def on_call(self, call: runner_pb2.DeviceCall, *, is_of_copies: bool) -> None:
        """The runner has ended a device call; `is_of_copies`: it has, or may have, computed copies."""
        ...

    def on_idle(self) -> None:
        """Every item that was sent has its outcome."""
        ...


class Dispatcher:
    """One runner's queue and the items that it holds. Loop thread only."""

    def __init__(
        self, listener: DispatchListener, clock: Clock, rules: LimitRules, interactive_share: float = 0.5
    ) -> None:
        self._listener = listener
        self._clock = clock
        self._rules = rules
        self._runner: RunnerPort | None = None
        self._device: DeviceUser | None = None
        self._held = InFlight()
        self._call_rows = 1  # most rows of a device call, as the runner says
        self._window_calls = WINDOW_CALLS
        self._item_ids = itertools.count(1)
        self._due: asyncio.Handle | None = None  # the next dispatch
        self._sent_at = 0.0  # loop.time() of the latest frame
        self._empty_heartbeats = 0  # in a row, while items have no outcome
        self.queue: FairQueue[PendingRequest] = FairQueue(interactive_share)
        self._slow = SlowPictures(interactive_share)
        self._copies: deque[PendingRequest] = deque()  # sent when nothing else waits or is held
        self.cost = CallCost()
        self.computed_seconds = 0.0  # of all device calls, but those of copies

    def open(self, runner: RunnerPort, row_seconds: float, device: DeviceShare, model: str) -> None:
        """Begin to send to a runner that has loaded its model.

        Args:
            runner: the process.
            row_seconds: measured by the load; 0 if unknown.
            device: the share of the device that it computes on.
            model: its name.
        """
        self._runner = runner
        self.cost = CallCost(row_seconds)
        self._device = device.join(model, self._dispatch_soon, row_seconds, self.cost)
        self.dispatch()

    def set_call_rows(self, rows: int) -> None:
        """Set the most rows of a device call."""
        self._call_rows = max(1, rows)
        self.queue.set_ahead_rows(round(WINDOW_CALLS * self._call_rows))

    def submit(self, request: PendingRequest) -> None:
        """Queue a request; it is sent in this turn of the loop if the window has room for it."""
        if request.is_copy:
            self._copies.append(request)
        elif request.decoding_seconds:
            self._slow.put(request)
        else:
            self.queue.put(request, request.rows, request.flow)
        self._dispatch_soon()

    def depth(self, priority: Priority) -> QueueDepth:
        """The number of requests and rows that wait with a priority; from any thread."""
        return self.queue.depth(priority) + self._slow.queue.depth(priority)

    def dispatch(self) -> None:
        """Send requests, in fair order, while the window has room for the next one.

        What can no longer be answered in time fails now, before it costs anything.
        """
        if self._runner is None or self._device is None:
            return
        now, items = self._clock.monotonic(), []
        if not self._device.is_alone and (self.queue.entries or (self._held.has_callers and self._held.rows_left)):
            self._device.begin_waiting(now)
        waiting, slow = self.queue.entries, self._slow.queue.entries
        while (waiting or slow or self._copies) and (request := self._choose(now, self._device)) is not None:
            items.append((self._take(request, now), request.payload.picture))
        if items and self._runner is not None:  # a failure may have ended the process
            self._empty_heartbeats = 0
            self._sent_at = asyncio.get_running_loop().time()
            self._runner.send_items(items)
        self._end_waiting_if_idle()

    def _choose(self, now: float, device: DeviceUser) -> PendingRequest | None:
        """The next request to send; fails those before it that are too late."""
        slow, queue = self._slow.queue.entries, self.queue
        while request := (
            (self._slow.choose(self._held) if slow and not self._is_next_alone() else None)
            or (queue.peek() if queue.entries else None)
        ):
            work = self._held.work(now)
            if self._is_too_late(request, work, now):
                self._remove(request)
                self._listener.on_failure(request, TOO_LATE)
                continue
            if request.decoding_seconds:
                return None if must_wait(request, self._held) else request
            window = self._window_calls
            if work.rows:
                window = limit_window(window, work, self.cost, self._call_rows)
            is_room = may_send(request, self._held, self._call_rows, window)
            return request if is_room and (device.is_alone or device.may_send(now)) else None
        return self._copies[0] if self._copies and may_send_copy(self._copies[0], self._held) else None

    def _is_next_alone(self) -> bool:
        """Whether the next ordinary request must be computed alone: it would wait for as long as slow ones come."""
        first = self.queue.peek()
        return first is not None and first.alone

    def _is_too_late(self, request: PendingRequest, work: WorkInFlight, now: float) -> bool:
        left = request.time_limit - now
        if request.decoding_seconds:  # meanwhile others are computed
            return MIN_DECODING_SHARE * request.decoding_seconds + self.cost.at_best(request.rows) > left
        return is_too_late(work, request.priority, request.rows, self.cost, self._call_rows, left)

    def on_reply(self, reply: runner_pb2.ItemsReply) -> None:
        """Process a runner's reply; unknown items are ignored."""
        held, was_busy = self._held, bool(self._held.items)
        self._empty_heartbeats = 0
        if reply.call_rows and reply.call_rows != self._call_rows:
            self.set_call_rows(reply.call_rows)
        for call in reply.calls:
            held.computing_since = self._clock.monotonic()
            if self._device is not None and not self._device.is_alone and not held.copies:
                self._device.add_call(call.computed_seconds, call.rows, held.computing_since)
            held.count_computed(call.rows)
            if held.copies:  # it may have been computed at low priority: it says nothing about other calls
                self._listener.on_call(call, is_of_copies=True)
                continue
            self.cost.learn(call.computed_seconds, call.rows)
            self.computed_seconds += call.computed_seconds
            is_backlogged = bool(self.queue.entries)
            self._window_calls = adapt_window(self._window_calls, call, self._call_rows, is_backlogged=is_backlogged)
            self._listener.on_call(call, is_of_copies=False)
        for outcome in reply.outcomes:
            is_cancelled = held.is_cancelled(outcome.item_id)
            request = held.remove(outcome.item_id, outcome.computed_rows)
            if request is not None:
                self._report_outcome(request, outcome, is_cancelled=is_cancelled)
        if (
            was_busy and not held.items and held is self._held
        ):  # an outcome may have moved the requests to the other slot
            self._listener.on_idle()
        self._end_waiting_if_idle()
        self._dispatch_soon()

    def forget(self, request: PendingRequest) -> None:
        """Remove a request that is done from the queue; the runner may still hold it."""
        self._remove(request)
        if request.is_abandoned and not request.is_copy:
            self._held.abandon(request)
        self._end_waiting_if_idle()

    def cancel(self, request: PendingRequest) -> None:
        """Cancel a request: it leaves the queue, or the runner skips it if it has not begun."""
        self._remove(request)
        item_ids = self._held.cancel(request)
        if self._runner is not None and item_ids:
            self._runner.cancel(item_ids)

    def limit_of(self, rows: int) -> float:
        """The time limit of a device call of `rows` rows on this runner, seconds."""
        return limit_seconds(self.cost, rows, self._rules)

    def on_heartbeat(self, heartbeat: runner_pb2.Heartbeat) -> None:
        """Count the heartbeats that report no item while items have no outcome."""
        self._empty_heartbeats = self._empty_heartbeats + 1 if self._held and not heartbeat.waiting_items else 0

    def find_hang(self, heartbeat: runner_pb2.Heartbeat, *, is_cpu: bool, share: float = 1.0) -> str:
        """A sentence if the runner exceeds this share of a time limit, by its last heartbeat, or has lost items."""
        if self._empty_heartbeats >= share * LOST_HEARTBEATS:
            return f"{len(self._held)} items have no outcome, and the runner does not hold them"
        call_limit = share * self.limit_of(heartbeat.rows_on_step)
        return find_hang(heartbeat, call_limit, share * self._rules.prepare_timeout_seconds, is_cpu=is_cpu)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and the runner holds nothing, but for copies."""
        held = self._held
        return not (len(held.items) > len(held.copies) or self.queue.entries or self._slow.queue.entries)

    @property
    def has_waiting(self) -> bool:
        """Whether a request of a caller waits here to be sent."""
        return bool(self.queue.entries or self._slow.queue.entries)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all waits, and the runner holds nothing."""
        return self.is_idle and not self._copies and not self._held

    @property
    def is_contended(self) -> bool:
        """Whether another model on the device has rows to compute."""
        device = self._device
        return device is not None and not device.is_alone and device.is_contended

    @property
    def look_ahead_rows(self) -> int:
        """Rows of stream items that may wait in the queue: a device call's, or what is computed in a moment."""
        moment = LOOK_AHEAD_SECONDS / self.cost.row_seconds if self.cost.row_seconds > 0 else 0.0
        return max(self._call_rows, round(min(moment, MAX_LOOK_AHEAD_ROWS)))

    def estimate(self, flow: Flow, rows: int) -> Estimate:
        """The expected seconds of a new request, by part."""
        work = self._held.work(self._clock.monotonic())
        return estimate_request(self.queue, work, flow, rows, self.cost, self._call_rows)

    def find_abandoned(self, computing: Sequence[int]) -> list[InputId]:
        """The inputs in the device call that ran at the end whose callers had left."""
        return self._held.find_abandoned(computing)

    def close(self, computing: Sequence[int] = ()) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """Stop sending: the runner has ended.

        Args:
            computing: ids of the items in the device call that ran at the end.

        Returns:
            The requests that may have ended it, and the others: those that it held too, and those of the queue.
        """
        self._runner = None
        if self._device is not None:
            self._device.leave(self._clock.monotonic())
            self._device = None
        held, self._held = self._held, InFlight()
        suspects, others = held.split(computing)
        copies, self._copies = self._copies, deque()
        return suspects, [*others, *self.queue.take_all(), *self._slow.queue.take_all(), *copies]

    def _remove(self, request: PendingRequest) -> None:
        """Remove a request from the queue in which it waits, if it does."""
        if request.is_copy and request in self._copies:
            self._copies.remove(request)
        if request in self.queue.entries:
            self.queue.remove(request)
        if request in self._slow.queue.entries:
            self._slow.queue.remove(request)

    def _end_waiting_if_idle(self) -> None:
        """Leave the device's seconds to others while there is nothing to compute."""
        if self._device is not None and self._device.is_waiting and self.is_idle:
            self._device.end_waiting(self._clock.monotonic())

    def _take(self, request: PendingRequest, now: float) -> runner_pb2.Item:
        """Take the next request of its queue; returns its message."""
        if request.is_copy:
            self._copies.popleft()
        else:
            (self._slow.queue if request.decoding_seconds else self.queue).pop()
        if not self._held.items:
            self._held.computing_since = now
            self._listener.on_busy()
        is_contended = self._device is not None and not self._device.is_alone and self._device.is_contended
        item = _item(next(self._item_ids), request, now, is_device_contended=is_contended)
        self._held.add(item.item_id, request)
        self._listener.on_sent(request)
        return item

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the loop, so that all requests that arrive in it share one frame.

        Bulk requests wait a moment longer for others while the runner has enough to do.
        """
        if self._runner is None or not (self.queue.entries or self._slow.queue.entries or self._copies):
            return
        is_urgent = len(self._held.items) < JOIN_ITEMS or self.queue.depth(Priority.INTERACTIVE).requests > 0
        if self._due is not None:
            if not is_urgent or not isinstance(self._due, asyncio.TimerHandle):
                return
            self._due.cancel()
        loop, join_at = asyncio.get_running_loop(), self._sent_at + JOIN_SECONDS
        self._due = loop.call_soon(self._dispatch_now) if is_urgent else loop.call_at(join_at, self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._due = None
        self.dispatch()

    def _report_outcome(self, request: PendingRequest, outcome: runner_pb2.ItemOutcome, *, is_cancelled: bool) -> None:
        results = read_results(outcome)
        if results and len(results) == request.results:
            self._listener.on_answer(request, Computed(results, outcome.prepared_seconds, outcome.computed_seconds))
            return
        if is_cancelled:
            if request.is_copy:
                self._listener.on_failure(request, TOO_LATE)
            return
        if outcome.HasField("postponed"):
            if request.is_copy:
                self._listener.on_failure(request, TOO_LATE)
            elif not request.is_done:
                self._slow.postpone(request, outcome.postponed.seconds, outcome.postponed.places)
            return
        failure = outcome.failure
        self._listener.on_failure(request, Failure(failure.reason or "ENGINE_FAILED", failure.message, failure.field))


def _item(item_id: int, request: PendingRequest, now: float, *, is_device_contended: bool) -> runner_pb2.Item:
    """The runner's message for a request, without its picture."""
    request.sent_at = now
    item = runner_pb2.Item(
        item_id=item_id,
        seconds_left=request.time_limit - now,
        priority=request.priority + request.is_copy,
        may_take_long=request.decoding_seconds > 0,
        is_device_contended=is_device_contended,
    )
    request.payload.write(item)
    return item
