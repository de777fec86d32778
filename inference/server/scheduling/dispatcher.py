"""Sends queued requests to one runner, one by one, while it holds fewer rows than a small window."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.clock import Clock
from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.server.request import Failure, Outcome, PendingRequest
from inference.server.scheduling.limits import LOST_HEARTBEATS, LimitRules, find_hang, limit_seconds
from inference.server.scheduling.queue import WaitingQueue
from inference.wire import EntailmentScores, Picture

WINDOW_CALLS = 2.0  # rows sent and not computed, in device calls, at least: one is computed, one is prepared
MAX_WINDOW_CALLS = 6.0
WINDOW_GROWTH = 1.25  # after a device call that was not full, or came late, although requests waited here
WINDOW_DECAY = 0.02  # device calls, after any other call
FULL_SHARE = 0.75  # of the rows of a full call: the last item often does not fit
IDLE_SHARE = 0.05  # of a device call's time before it, for which the device had nothing to compute
MAX_IN_FLIGHT_BYTES = 48 << 20  # of payload; below the maximum frame size of 64 MiB; a single item may exceed it
INTERACTIVE = 0  # the priority that is computed first
MAX_INTERRUPTIONS = 2  # ends of runners that held a request without computing it, before it is a suspect itself


class RunnerPort(Protocol):
    """The part of a runner process that the dispatcher uses."""

    def send_items(self, items: Sequence[tuple[runner_pb2.Item, Picture]]) -> None:
        """Send items, each with its picture, so that no picture is copied."""
        ...

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Cancel items."""
        ...


@dataclass(frozen=True, slots=True)
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

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """An item was answered."""
        ...

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """An item failed."""
        ...

    def on_call(self, call: runner_pb2.DeviceCall) -> None:
        """The runner has ended a device call."""
        ...

    def on_idle(self) -> None:
        """Every item that was sent has its outcome."""
        ...


class InFlight:
    """The requests that a runner holds, until their outcomes: cancelled ones too. Pure."""

    def __init__(self) -> None:
        self._requests: dict[int, PendingRequest] = {}  # by item id
        self._cancelled: set[int] = set()  # item ids
        self.size_bytes = 0
        self._rows: dict[int, int] = {}  # by priority
        self._computed_rows = 0  # of items whose outcome is still to come

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> list[PendingRequest]:
        """The requests that are not done, each once."""
        return list({request.id: request for request in self._requests.values() if not request.is_done}.values())

    @property
    def rows_left(self) -> int:
        """Rows sent and not computed."""
        return max(0, sum(self._rows.values()) - self._computed_rows)

    def rows_of(self, priority: int) -> int:
        """Rows of the items of a priority."""
        return self._rows.get(priority, 0)

    @property
    def is_alone(self) -> bool:
        """Whether the runner holds a request that must be computed alone."""
        return any(request.alone for request in self._requests.values())

    def add(self, item_id: int, request: PendingRequest) -> None:
        """Add a request that is sent as this item."""
        self._requests[item_id] = request
        self.size_bytes += request.size_bytes
        self._rows[request.priority] = self.rows_of(request.priority) + request.rows

    def count_computed(self, rows: int) -> None:
        """Count the rows of a device call."""
        self._computed_rows += rows

    def split(self, computing: Sequence[int]) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """The requests that may have ended the runner, and the others; none that is done.

        Those in the device call that ran at the end are suspects; if none ran, all are. A request that was held by
        several runners when they ended is one too: it may have ended them in its preparation.
        """
        running = {self._requests[item_id].id for item_id in computing if item_id in self._requests}
        suspects: list[PendingRequest] = []
        others: list[PendingRequest] = []
        for request in self.requests:
            request.interruptions += 1
            is_suspect = not running or request.id in running or request.interruptions > MAX_INTERRUPTIONS
            (suspects if is_suspect else others).append(request)
        return suspects, others

    def cancel(self, request: PendingRequest) -> list[int]:
        """Mark the items of a request as cancelled; returns their ids."""
        found = [item_id for item_id, held in self._requests.items() if held is request]
        self._cancelled.update(found)
        return found

    def is_cancelled(self, item_id: int) -> bool:
        """Whether an item was cancelled: its failure concerns nobody, its request may be in another slot by now."""
        return item_id in self._cancelled

    def remove(self, item_id: int, computed_rows: int) -> PendingRequest | None:
        """Remove and return the request of an outcome; None if it is unknown."""
        request = self._requests.pop(item_id, None)
        if request is not None:
            self.size_bytes -= request.size_bytes
            self._rows[request.priority] -= request.rows
            self._computed_rows -= computed_rows
            self._cancelled.discard(item_id)
        return request


def adapt_window(window_calls: float, call: runner_pb2.DeviceCall, call_rows: int, *, is_backlogged: bool) -> float:
    """The window, in device calls, after a device call. Pure.

    While requests wait in the queue, calls should be full and follow each other without a pause. If they do not,
    sending and preparing takes longer than the window lasts.

    Args:
        window_calls: the window before.
        call: has ended.
        call_rows: most rows of a call.
        is_backlogged: whether requests waited in the queue.
    """
    is_late = call.idle_seconds > IDLE_SHARE * call.computed_seconds
    if is_backlogged and (is_late or call.rows < FULL_SHARE * call_rows):
        return min(MAX_WINDOW_CALLS, window_calls * WINDOW_GROWTH)
    return max(WINDOW_CALLS, window_calls - WINDOW_DECAY)


def may_send(request: PendingRequest, held: InFlight, call_rows: int, window_calls: float = WINDOW_CALLS) -> bool:
    """Whether the next request of the queue is sent now. Pure.

    A window of two device calls keeps the device busy while further items are prepared, or a larger one if that takes
    longer. What is sent beyond that could no longer be overtaken by a request whose turn comes first. An interactive
    request is sent although bulk requests fill the window, so that it waits for the running device call only.
    """
    if not held:
        return True
    if request.alone or held.is_alone or held.size_bytes + request.size_bytes > MAX_IN_FLIGHT_BYTES:
        return False
    if held.rows_left < window_calls * call_rows:
        return True
    return request.priority == INTERACTIVE and held.rows_of(INTERACTIVE) < call_rows


class Dispatcher:
    """One runner's queue and the items that it holds. Loop thread only."""

    def __init__(self, listener: DispatchListener, clock: Clock, rules: LimitRules) -> None:
        self._listener = listener
        self._clock = clock
        self._rules = rules
        self._runner: RunnerPort | None = None
        self._held = InFlight()
        self._call_rows = 1  # most rows of a device call, as the runner says
        self._window_calls = WINDOW_CALLS
        self._item_ids = itertools.count(1)
        self._is_dispatch_due = False
        self._empty_heartbeats = 0  # in a row, while items have no outcome
        self.queue = WaitingQueue()
        self.cost = CallCost()

    def open(self, runner: RunnerPort, row_seconds: float) -> None:
        """Begin to send to a runner that has loaded its model."""
        self._runner = runner
        self.cost = CallCost(row_seconds)
        self.dispatch()

    def set_call_rows(self, rows: int) -> None:
        """Set the most rows of a device call."""
        self._call_rows = max(1, rows)

    def submit(self, request: PendingRequest) -> None:
        """Queue a request; it is sent in this turn of the loop if the window has room for it."""
        self.queue.put(request)
        self._dispatch_soon()

    def dispatch(self) -> None:
        """Send requests, in the queue's order, while the window has room for the next one."""
        if self._runner is None:
            return
        now, items = self._clock.monotonic(), []
        while (request := self.queue.peek()) is not None and may_send(
            request, self._held, self._call_rows, self._window_calls
        ):
            self.queue.take()
            if not self._held:
                self._listener.on_busy()
            item = _item(next(self._item_ids), request, now)
            self._held.add(item.item_id, request)
            items.append((item, request.payload.image))
        if items:
            self._empty_heartbeats = 0
            self._runner.send_items(items)

    def on_reply(self, reply: runner_pb2.ItemsReply) -> None:
        """Process a runner's reply; unknown items are ignored."""
        held, was_busy = self._held, bool(self._held)
        self._empty_heartbeats = 0
        self.set_call_rows(reply.call_rows or self._call_rows)
        for call in reply.calls:
            held.count_computed(call.rows)
            self.cost.learn(call.computed_seconds, call.rows)
            is_backlogged = self.queue.peek() is not None
            self._window_calls = adapt_window(self._window_calls, call, self._call_rows, is_backlogged=is_backlogged)
            self._listener.on_call(call)
        for outcome in reply.outcomes:
            is_cancelled = held.is_cancelled(outcome.item_id)
            request = held.remove(outcome.item_id, outcome.computed_rows)
            if request is not None:
                self._report_outcome(request, outcome, is_cancelled=is_cancelled)
        if was_busy and not held and held is self._held:  # an outcome may have moved the requests to the other slot
            self._listener.on_idle()
        self._dispatch_soon()

    def cancel(self, request: PendingRequest) -> None:
        """Cancel a request: it leaves the queue, or the runner skips it if it has not begun."""
        self.queue.remove(request)
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

    def expected_seconds(self, rows: int) -> float:
        """Expected seconds until `rows` further rows are answered, after what the runner holds."""
        return self.cost.expected(rows + self._held.rows_left)

    def close(self, computing: Sequence[int] = ()) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """Stop sending: the runner has ended.

        Args:
            computing: ids of the items in the device call that ran at the end.

        Returns:
            The requests that may have ended it, and the others: those that it held too, and those of the queue.
        """
        self._runner = None
        held, self._held = self._held, InFlight()
        suspects, others = held.split(computing)
        return suspects, [*others, *self.queue.take_all()]

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the loop, so that all requests that arrive in it share one frame."""
        if self._runner is not None and not self._is_dispatch_due and self.queue:
            self._is_dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._is_dispatch_due = False
        self.dispatch()

    def _report_outcome(self, request: PendingRequest, outcome: runner_pb2.ItemOutcome, *, is_cancelled: bool) -> None:
        kind = outcome.WhichOneof("outcome")
        if kind == "entailment":
            scores = tuple(EntailmentScores(s.yes, s.no, s.maybe) for s in outcome.entailment.scores)
            self._listener.on_answer(request, Computed(scores, outcome.prepared_seconds, outcome.computed_seconds))
            return
        if is_cancelled:
            return
        failure = outcome.failure
        self._listener.on_failure(request, Failure(failure.reason or "ENGINE_FAILED", failure.message, failure.field))


def _item(item_id: int, request: PendingRequest, now: float) -> runner_pb2.Item:
    """The runner's message for a request, without its picture."""
    request.sent_at = now
    payload = request.payload
    task = runner_pb2.EntailmentTask(statements=payload.statements, premise=payload.premise)
    seconds_left = (request.handover_at if request.handover_at is not None else request.deadline) - now
    return runner_pb2.Item(item_id=item_id, seconds_left=seconds_left, entailment=task, priority=request.priority)
