"""Sends queued requests to one runner in batches, and tracks the batches in flight."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.clock import Clock
from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.server.request import Failure, Outcome, PendingRequest
from inference.server.scheduling.queue import BatchBudget, WaitingQueue
from inference.wire import EntailmentScores

IN_FLIGHT_LIMIT = 2  # batches: one being computed, one being prepared


@dataclass(frozen=True, slots=True)
class LimitRules:
    """How a time limit is computed from measured cost."""

    min_timeout_seconds: float  # lower bound of every limit
    factor: float  # times the expected time
    prepare_seconds: float = 0.5  # allowance per batch for decoding


def limit_seconds(cost: RowCost, rows: int, rules: LimitRules) -> float:
    """The time limit for `rows` rows, seconds: a runner that exceeds it is killed as stuck."""
    return max(rules.min_timeout_seconds, rules.prepare_seconds + rules.factor * cost.expected(rows))


class RunnerPort(Protocol):
    """The part of a runner process that the dispatcher uses."""

    def send_batch(
        self, batch: runner_pb2.ComputeBatch, items: Sequence[tuple[runner_pb2.BatchItem, bytes]] = ()
    ) -> None:
        """Send a batch; `items` are further items, each with its picture, so that no picture is copied."""
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
    """Receives the outcomes of items and batches, on the loop's thread."""

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """An item was answered."""
        ...

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """An item failed."""
        ...

    def on_batch_sent(self, requests: Sequence[PendingRequest]) -> None:
        """A batch was sent; it uses the slot until `on_batch_done`."""
        ...

    def on_batch_done(self, reply: runner_pb2.BatchReply) -> None:
        """The runner has finished a batch."""
        ...


@dataclass(slots=True)
class _Batch:
    """A batch in flight."""

    requests: dict[int, PendingRequest]  # without an outcome, by item id
    rows_left: int
    progress_at: float  # when it became the oldest batch, or last made progress
    is_alone: bool


class Dispatcher:
    """One runner's queue and its batches in flight. Loop thread only."""

    def __init__(self, listener: DispatchListener, clock: Clock, budget: BatchBudget, rules: LimitRules) -> None:
        self._listener = listener
        self._clock = clock
        self._budget = budget
        self._rules = rules
        self._runner: RunnerPort | None = None
        self._in_flight: dict[int, _Batch] = {}
        self._batch_ids = itertools.count(1)
        self._is_dispatch_due = False
        self.queue = WaitingQueue()
        self.cost = RowCost()

    def open(self, runner: RunnerPort, row_seconds: float) -> None:
        """Begin to send to a runner that has loaded its model."""
        self._runner = runner
        self.cost = RowCost(row_seconds)
        self.dispatch()

    def submit(self, request: PendingRequest) -> None:
        """Queue a request; it is sent in this turn of the loop if the runner is below its in-flight limit."""
        self.queue.put(request)
        if self._runner is not None and len(self._in_flight) < IN_FLIGHT_LIMIT:
            self._dispatch_soon()

    def dispatch(self) -> None:
        """Send batches while requests wait and the runner is below its in-flight limit."""
        while self._runner is not None and self.queue and len(self._in_flight) < IN_FLIGHT_LIMIT:
            if self._in_flight and (self.queue.next_is_alone() or any(f.is_alone for f in self._in_flight.values())):
                return
            requests = self.queue.take(self._budget)
            if not requests:
                return
            self._send(self._runner, requests)

    def on_reply(self, reply: runner_pb2.BatchReply) -> None:
        """Process a runner's reply; unknown batches and items are ignored."""
        batch = self._in_flight.get(reply.batch_id)
        if batch is None:
            return
        now = self._clock.monotonic()
        for outcome in reply.outcomes:
            request = batch.requests.pop(outcome.item_id, None)
            if request is not None:
                batch.rows_left -= request.rows
                self._report_outcome(request, outcome)
        batch.progress_at = now
        if reply.done:
            self._end_batch(reply, batch, now)
            if self.queue:
                self._dispatch_soon()

    def cancel(self, request: PendingRequest) -> None:
        """Cancel a request in the runner, which skips it if it has not begun."""
        if self._runner is not None and any(request.id in batch.requests for batch in self._in_flight.values()):
            self._runner.cancel([request.id])

    def overdue_seconds(self, now: float) -> float:
        """Seconds by which the oldest batch exceeds its time limit; 0 or less if it does not."""
        head = next(iter(self._in_flight.values()), None)
        if head is None:
            return 0.0
        return now - head.progress_at - limit_seconds(self.cost, head.rows_left, self._rules)

    def limit_of(self, rows: int) -> float:
        """The time limit for `rows` rows on this runner, seconds."""
        return limit_seconds(self.cost, rows, self._rules)

    def expected_seconds(self, rows: int) -> float:
        """Expected seconds until `rows` further rows are answered, after the batches in flight."""
        ahead = sum(batch.rows_left for batch in self._in_flight.values())
        return self.cost.expected(rows + ahead)

    def close(self) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """Stop sending: the runner has ended.

        Returns:
            The requests in flight (suspects, if it died), and the queued requests.
        """
        self._runner = None
        batches, self._in_flight = self._in_flight, {}
        held = [request for batch in batches.values() for request in batch.requests.values()]
        return [request for request in held if not request.is_done], self.queue.take_all()

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the loop, so that all requests that arrive in it share one frame."""
        if not self._is_dispatch_due:
            self._is_dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._is_dispatch_due = False
        self.dispatch()

    def _send(self, runner: RunnerPort, requests: list[PendingRequest]) -> None:
        now = self._clock.monotonic()
        batch = runner_pb2.ComputeBatch(batch_id=next(self._batch_ids))
        items = [(_item(request, now), request.payload.image) for request in requests]
        self._in_flight[batch.batch_id] = _Batch(
            requests={request.id: request for request in requests},
            rows_left=sum(request.rows for request in requests),
            progress_at=now,
            is_alone=any(request.alone for request in requests),
        )
        self._listener.on_batch_sent(requests)
        runner.send_batch(batch, items)

    def _report_outcome(self, request: PendingRequest, outcome: runner_pb2.ItemOutcome) -> None:
        kind = outcome.WhichOneof("outcome")
        if kind == "entailment":
            scores = tuple(EntailmentScores(s.yes, s.no, s.maybe) for s in outcome.entailment.scores)
            self._listener.on_answer(request, Computed(scores, outcome.prepared_seconds, outcome.computed_seconds))
            return
        failure = outcome.failure
        self._listener.on_failure(request, Failure(failure.reason or "ENGINE_FAILED", failure.message, failure.field))

    def _end_batch(self, reply: runner_pb2.BatchReply, batch: _Batch, now: float) -> None:
        del self._in_flight[reply.batch_id]
        for request in batch.requests.values():
            self._listener.on_failure(request, Failure("ENGINE_FAILED", "the runner finished the batch without it"))
        for waiting in self._in_flight.values():
            waiting.progress_at = now
            break
        self.cost.learn(reply.computed_seconds, reply.rows)
        self._listener.on_batch_done(reply)


def _item(request: PendingRequest, now: float) -> runner_pb2.BatchItem:
    """The runner's message for a request, without its picture."""
    request.sent_at = now
    payload = request.payload
    task = runner_pb2.EntailmentTask(statements=payload.statements, premise=payload.premise)
    seconds_left = (request.handover_at if request.handover_at is not None else request.deadline) - now
    return runner_pb2.BatchItem(item_id=request.id, seconds_left=seconds_left, entailment=task)
