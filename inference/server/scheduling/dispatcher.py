"""Keeps one runner busy: takes what waits as soon as the runner has credit, and knows what it holds."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.clock import Clock
from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.server.request import Failure, Outcome, PendingRequest
from inference.server.scheduling.cost import LimitRules, limit_seconds
from inference.server.scheduling.queue import BatchBudget, WaitingQueue
from inference.wire import EntailmentScores

CREDIT = 2  # one batch computing, one prepared


class RunnerPort(Protocol):
    """What the dispatcher needs of a runner process."""

    def send_batch(
        self, batch: runner_pb2.ComputeBatch, items: Sequence[tuple[runner_pb2.BatchItem, bytes]] = ()
    ) -> None:
        """Hand over a batch, its items apart, each with its picture."""
        ...

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Say that nobody waits for these items."""
        ...


@dataclass(frozen=True, slots=True)
class Computed:
    """What a runner says of one answered item."""

    outcome: Outcome
    prepared_seconds: float
    computed_seconds: float


class DispatchSink(Protocol):
    """Who is told of outcomes, on the loop's thread."""

    def on_answer(self, request: PendingRequest, computed: Computed) -> None:
        """An item has its answer."""
        ...

    def on_failure(self, request: PendingRequest, failure: Failure) -> None:
        """An item has none."""
        ...

    def on_batch_sent(self, requests: Sequence[PendingRequest]) -> None:
        """A batch was handed to the runner; it holds the slot until it is done."""
        ...

    def on_batch_done(self, reply: runner_pb2.BatchReply) -> None:
        """A batch is done."""
        ...


@dataclass(slots=True)
class _Flight:
    """A batch in the runner's hands."""

    requests: dict[int, PendingRequest]  # without an outcome yet, by item id
    rows_left: int
    step_since: float  # when it became the runner's first, or last made progress
    is_alone: bool


class Dispatcher:
    """One runner's queue and what is in its hands. Loop thread only."""

    def __init__(self, sink: DispatchSink, clock: Clock, budget: BatchBudget, rules: LimitRules) -> None:
        self._sink = sink
        self._clock = clock
        self._budget = budget
        self._rules = rules
        self._runner: RunnerPort | None = None
        self._flights: dict[int, _Flight] = {}
        self._batch_ids = itertools.count(1)
        self._is_pump_due = False
        self.queue = WaitingQueue()
        self.cost = RowCost()

    def open(self, runner: RunnerPort, row_seconds: float) -> None:
        """A model is loaded: hand over what waits."""
        self._runner = runner
        self.cost = RowCost(row_seconds)
        self.pump()

    def submit(self, request: PendingRequest) -> None:
        """Queue a request; it is handed over at once if the runner has credit."""
        self.queue.put(request)
        if self._runner is not None and len(self._flights) < CREDIT:
            self._pump_soon()

    def pump(self) -> None:
        """Hand over batches while the runner has credit and something waits."""
        while self._runner is not None and self.queue and len(self._flights) < CREDIT:
            if self._flights and (self.queue.next_is_alone() or any(f.is_alone for f in self._flights.values())):
                return
            requests = self.queue.take(self._budget)
            if not requests:
                return
            self._send(self._runner, requests)

    def on_reply(self, reply: runner_pb2.BatchReply) -> None:
        """Take in a runner's outcomes; unknown batches and items are nobody's any more."""
        flight = self._flights.get(reply.batch_id)
        if flight is None:
            return
        now = self._clock.monotonic()
        for outcome in reply.outcomes:
            request = flight.requests.pop(outcome.item_id, None)
            if request is not None:
                flight.rows_left -= request.payload.rows
                self._tell(request, outcome)
        flight.step_since = now
        if reply.done:
            self._end_flight(reply, flight, now)
            if self.queue:
                self._pump_soon()

    def cancel(self, request: PendingRequest) -> None:
        """Nobody waits for a request any more: spare the runner if it has not begun."""
        if self._runner is not None and any(request.id in flight.requests for flight in self._flights.values()):
            self._runner.cancel([request.id])

    def overdue_seconds(self, now: float) -> float:
        """How long the runner is over the limit of what it has in hand; 0 or less if it is not."""
        head = next(iter(self._flights.values()), None)
        if head is None:
            return 0.0
        return now - head.step_since - limit_seconds(self.cost, head.rows_left, self._rules)

    def limit_of(self, rows: int) -> float:
        """How long so many rows may take on this runner, seconds."""
        return limit_seconds(self.cost, rows, self._rules)

    def waits_seconds(self, rows: int) -> float:
        """Expected seconds until so many further rows would be answered, behind what is there."""
        ahead = sum(flight.rows_left for flight in self._flights.values())
        return self.cost.expected(rows + ahead)

    def close(self) -> tuple[list[PendingRequest], list[PendingRequest]]:
        """The runner is gone.

        Returns:
            Tickets that were in its hands (suspect_requests, if it died), and requests that waited.
        """
        self._runner = None
        flights, self._flights = self._flights, {}
        held = [request for flight in flights.values() for request in flight.requests.values()]
        return [request for request in held if not request.is_done], self.queue.take_all()

    def _pump_soon(self) -> None:
        """Pump when everything that came in this turn of the loop is queued: one frame for all of it."""
        if not self._is_pump_due:
            self._is_pump_due = True
            asyncio.get_running_loop().call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._is_pump_due = False
        self.pump()

    def _send(self, runner: RunnerPort, requests: list[PendingRequest]) -> None:
        now = self._clock.monotonic()
        batch = runner_pb2.ComputeBatch(batch_id=next(self._batch_ids))
        items = [(_item(request, now), request.payload.image) for request in requests]
        self._flights[batch.batch_id] = _Flight(
            requests={request.id: request for request in requests},
            rows_left=sum(request.payload.rows for request in requests),
            step_since=now,
            is_alone=any(request.alone for request in requests),
        )
        self._sink.on_batch_sent(requests)
        runner.send_batch(batch, items)

    def _tell(self, request: PendingRequest, outcome: runner_pb2.ItemOutcome) -> None:
        kind = outcome.WhichOneof("outcome")
        if kind == "entailment":
            scores = tuple(EntailmentScores(s.yes, s.no, s.maybe) for s in outcome.entailment.scores)
            self._sink.on_answer(request, Computed(scores, outcome.prepared_seconds, outcome.computed_seconds))
            return
        failure = outcome.failure
        self._sink.on_failure(request, Failure(failure.reason or "ENGINE_FAILED", failure.message, failure.field))

    def _end_flight(self, reply: runner_pb2.BatchReply, flight: _Flight, now: float) -> None:
        del self._flights[reply.batch_id]
        for request in flight.requests.values():
            self._sink.on_failure(request, Failure("ENGINE_FAILED", "the runner ended the batch without this item"))
        for waiting in self._flights.values():
            waiting.step_since = now
            break
        self.cost.learn(reply.computed_seconds, reply.rows)
        self._sink.on_batch_done(reply)


def _item(request: PendingRequest, now: float) -> runner_pb2.BatchItem:
    """A request as the runner is told of it, without its picture."""
    request.runs += 1
    request.sent_at = now
    payload = request.payload
    task = runner_pb2.EntailmentTask(statements=payload.statements, premise=payload.premise)
    seconds_left = (request.try_until or request.deadline) - now
    return runner_pb2.BatchItem(item_id=request.id, seconds_left=seconds_left, entailment=task)
