"""Plays callers against admission, the fair queue, read turns and a modelled device, without processes or real time."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from common.errors import HotslotError
from inference.call_cost import CallCost
from inference.runner.plan import WaitingRows, choose_call
from inference.server.request import INTERNAL, Flow, Priority
from inference.server.scheduling.admission import AdmissionController, AdmissionRequest, Capacity
from inference.server.scheduling.fair_queue import Caller, CallerRules, FairQueue
from inference.server.scheduling.in_flight import (
    WINDOW_CALLS,
    WorkInFlight,
    estimate_request,
    is_too_late,
    limit_window,
)
from inference.server.scheduling.turns import Reader, ReadTurns

SELF_TEST_PAUSE_SECONDS = 1.0
TICK_SECONDS = 0.05
READ_SECONDS = 0.0005  # of a message that was received


@dataclass(eq=False, repr=False)
class Request:
    """A request of a simulated caller."""

    flow: Flow
    rows: int
    arrived: float
    deadline: float
    rows_left: int
    stream: "Stream | None" = None
    outcome: str = ""  # "OK", or the reason
    ended: float = 0.0
    retry_seconds: float | None = None
    expected_seconds: float = 0.0
    on_end: Callable[["Request"], None] = lambda _: None

    @property
    def seconds(self) -> float:
        """From arrival to outcome."""
        return self.ended - self.arrived


@dataclass
class RowsInFlight:
    """Rows that the runner holds."""

    interactive: int = 0
    bulk: int = 0
    computing_since: float = 0.0

    @property
    def total(self) -> int:
        """Of both priorities."""
        return self.interactive + self.bulk

    def add(self, priority: Priority, rows: int, now: float) -> None:
        """Count rows that were sent."""
        if self.total == 0:
            self.computing_since = now
        self.remove(priority, -rows)

    def remove(self, priority: Priority, rows: int) -> None:
        """Subtract rows that were computed, or will not be."""
        if priority is Priority.INTERACTIVE:
            self.interactive -= rows
        else:
            self.bulk -= rows

    def work(self, now: float) -> WorkInFlight:
        """As the dispatcher sees it."""
        return WorkInFlight(self.interactive, self.total, now - self.computing_since)


@dataclass(repr=False)
class Tally:
    """What a simulation counted."""

    requests: list[Request] = field(default_factory=list)
    computed_rows: int = 0
    wasted_rows: int = 0  # computed for requests that were not answered in time
    busy_seconds: float = 0.0
    parts: list[tuple[Request, int, float, float]] = field(default_factory=list)  # rows computed, from, until

    def delivered(self, window: float, begin: float, end: float) -> list[float]:
        """Rows a second that were computed for requests answered in time, by window."""
        windows = [0.0] * round((end - begin) / window)
        for request, rows, since, until in self.parts:
            if request.outcome != "OK":
                continue
            for place in range(len(windows)):
                opens = begin + place * window
                overlap = min(until, opens + window) - max(since, opens)
                windows[place] += max(0.0, overlap) / (until - since) * rows / window
        return windows

    def count(self, outcome: str, chosen: Callable[[Request], bool] = lambda _: True) -> int:
        """Requests with an outcome."""
        return sum(request.outcome == outcome and chosen(request) for request in self.requests)

    def quantile(self, share: float, chosen: Callable[[Request], bool] = lambda _: True) -> float:
        """Of the seconds of answered requests."""
        seconds = sorted(one.seconds for one in self.requests if one.outcome == "OK" and chosen(one))
        return seconds[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else 0.0

    def rows_of(self, chosen: Callable[[Request], bool]) -> int:
        """Rows answered to some requests."""
        return sum(request.rows for request in self.requests if request.outcome == "OK" and chosen(request))


class Simulation:
    """One model on one device."""

    def __init__(
        self,
        row_seconds: float,
        *,
        overhead_seconds: float = 0.0,
        max_call_rows: int = 64,
        known_row_seconds: float | None = None,
        prepare_seconds: float = 0.0,
        reply_seconds: float = 0.0,
        interactive_share: float = 0.5,
        noise: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.row_seconds = row_seconds
        self.overhead_seconds = overhead_seconds
        self.max_call_rows = max_call_rows
        self.prepare_seconds = prepare_seconds
        self.reply_seconds = reply_seconds  # until an answer is known
        self.noise = noise
        self.other_call_seconds = 0.0  # of another model that always has calls, in turn with this one
        self.random = random.Random(1)
        self.cost = CallCost(row_seconds if known_row_seconds is None else known_row_seconds)
        self.queue: FairQueue[Request] = FairQueue(interactive_share)
        self.turns = ReadTurns(interactive_share)
        self.admission = AdmissionController(Capacity(100_000, 1 << 40), 0.0)
        self.flight = RowsInFlight()
        self.tally = Tally()
        self.callers: dict[str, Caller] = {}  # with a quota
        self.overload_seconds = 0.0
        self._ready: list[Request] = []
        self._is_computing = False
        self._freed_at = 0.0  # when the latest call ended
        self._turn_timer: float | None = None
        self._self_test_at = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.after(0.0, self._tick)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def run(self, seconds: float) -> Tally:
        """Play for some time."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = end
        return self.tally

    @property
    def call_rows(self) -> int:
        """Rows that a call may carry."""
        seconds = 2.0
        row = self.cost.row_seconds
        return max(1, min(self.max_call_rows, int(seconds / row) if row > 0 else self.max_call_rows))

    # The server.

    def offer(self, flow: Flow, rows: int, seconds: float, stream: "Stream | None" = None) -> Request:
        """A request arrives; admitted or refused at once."""
        request = Request(flow, rows, self.now, self.now + seconds, rows, stream)
        self.tally.requests.append(request)
        estimate = estimate_request(self.queue, self.flight.work(self.now), flow, rows, self.cost, self.call_rows)
        caller = self.callers.get(flow.caller)
        quota = 0.0 if caller is None or stream is not None else caller.quota_wait(self.now)
        facts = AdmissionRequest(rows, 1, seconds, estimate, quota, is_stream_item=stream is not None)
        try:
            self.admission.admit(facts, self.cost, self.now)
        except HotslotError as error:
            request.retry_seconds = error.retry_after_seconds
            self._end(request, error.reason, was_admitted=False)
            return request
        request.expected_seconds = estimate.total
        self.queue.put(request, rows, flow)
        if stream is not None:
            self.turns.unsent_rows += rows
            stream.caller.use_quota(rows, self.now)
        elif caller is not None:
            caller.use_quota(rows, self.now)
        self.after(0.0, self._dispatch)
        return request

    def _tick(self) -> None:
        is_idle = not self.queue and not self.flight.total
        self.admission.update(self.cost, is_idle=is_idle, now=self.now)
        self.overload_seconds += TICK_SECONDS * self.admission.overload.is_overloaded
        for request in [one for one in self.queue.entries if one.deadline <= self.now]:
            self._drop(request)
        self._dispatch()
        refused = any(one.outcome.startswith("DEADLINE_TOO") for one in self.tally.requests[-3:])
        if is_idle and refused and self.now >= self._self_test_at:
            self._self_test_at = self.now + max(SELF_TEST_PAUSE_SECONDS, 20 * self.row_seconds)
            self.queue.put(Request(INTERNAL, 1, self.now, self.now + 60, 1), 1, INTERNAL)
            self._dispatch()
        self.after(TICK_SECONDS, self._tick)

    def _drop(self, request: Request) -> None:
        if self.queue.remove(request):
            self._sent(request)
            self._end(request, "DEADLINE_EXPIRED")

    def _dispatch(self) -> None:
        self.queue.set_ahead_rows(round(WINDOW_CALLS * self.call_rows))
        while (request := self.queue.peek()) is not None:
            work, priority = self.flight.work(self.now), request.flow.priority
            if is_too_late(work, priority, request.rows, self.cost, self.call_rows, request.deadline - self.now):
                self._drop(request)
                continue
            window = self.call_rows * limit_window(WINDOW_CALLS, work, self.cost, self.call_rows)
            is_urgent = priority is Priority.INTERACTIVE and self.flight.interactive < WINDOW_CALLS * self.call_rows
            if self.flight.total >= window and not is_urgent:
                break
            self.queue.pop()
            self._sent(request)
            self.flight.add(request.flow.priority, request.rows, self.now)
            self.after(self.prepare_seconds, lambda request=request: self._prepared(request))  # type: ignore[misc]
        self._grant_turns()

    def _sent(self, request: Request) -> None:
        if request.stream is not None:
            self.turns.unsent_rows -= request.rows

    def _grant_turns(self) -> None:
        look_ahead = max(self.call_rows, int(0.05 / max(1e-6, self.cost.row_seconds)))
        for reader in self.turns.grant(look_ahead, self.now):
            self.after(READ_SECONDS, reader.on_turn)
        at = self.turns.next_grant_at()
        if at is not None and at != self._turn_timer:
            self._turn_timer = at
            self.after(max(0.0, at - self.now) + 1e-6, self._grant_turns)

    def wait_turn(self, reader: Reader) -> None:
        """A stream wants to read."""
        self.turns.wait(reader)
        self._grant_turns()

    def _end(self, request: Request, outcome: str, *, was_admitted: bool = True) -> None:
        request.outcome, request.ended = outcome, self.now
        if was_admitted and request.flow.caller:
            served_rows = request.rows if outcome == "OK" else 0
            self.admission.release(1, served_rows, is_stream_item=request.stream is not None)
        request.on_end(request)

    # The runner.

    def _prepared(self, request: Request) -> None:
        self._ready.append(request)
        if not self._is_computing:
            self._compute()

    def _compute(self) -> None:
        for request in list(self._ready):
            if self.now + self.cost.at_best(request.rows_left) > request.deadline:
                self._ready.remove(request)
                self.flight.remove(request.flow.priority, request.rows_left)
                self.tally.wasted_rows += request.rows - request.rows_left
                self._end(request, "DEADLINE_EXPIRED")
        self._ready.sort(key=lambda request: request.flow.priority)
        waiting = [
            WaitingRows(place, one.rows - one.rows_left, one.rows, one.deadline, priority=one.flow.priority)
            for place, one in enumerate(self._ready)
        ]
        self._is_computing = bool(waiting)
        if waiting:
            chosen = choose_call(waiting, self.call_rows, self.now, self.cost.expected)
            call = [(self._ready[part.item], part.rows) for part in chosen]
            rows = sum(part.rows for part in chosen)
            seconds = self.overhead_seconds + rows * self.row_seconds
            seconds *= self.random.uniform(1 - self.noise, 1 + self.noise)
            seconds += self._wait_for_other()
            self.after(seconds, lambda: self._computed(call, rows, seconds))

    def _wait_for_other(self) -> float:
        """Seconds until the present call of the other model ends; the first began when the device was free."""
        other = self.other_call_seconds
        return other - (self.now - self._freed_at) % other if other else 0.0

    def _computed(self, call: list[tuple[Request, int]], rows: int, seconds: float) -> None:
        self.cost.learn(seconds, rows)
        self.tally.computed_rows += rows
        self.tally.busy_seconds += seconds
        self._freed_at = self.now
        self.flight.computing_since = self.now
        for request, taken in call:
            self.tally.parts.append((request, taken, self.now - seconds, self.now))
            self.flight.remove(request.flow.priority, taken)
            request.rows_left -= taken
            if request.rows_left == 0:
                self._ready.remove(request)
                self.after(self.reply_seconds, lambda request=request: self._reply(request))  # type: ignore[misc]
        self._compute()
        self._dispatch()

    def _reply(self, request: Request) -> None:
        is_late = self.now > request.deadline
        self.tally.wasted_rows += request.rows * is_late
        if not is_late and request.expected_seconds > 0:
            self.admission.learn_lateness(self.now - request.arrived - request.expected_seconds)
        self._end(request, "DEADLINE_EXPIRED" if is_late else "OK")

    # Callers.

    def open_loop(
        self, flow: Flow, rate: float, rows: int, seconds: float, *, jitter: float = 0.2, until: float = 1e9
    ) -> None:
        """Requests at a rate, whatever becomes of them; `jitter` 1.0 is a Poisson process."""

        def gaps() -> Iterator[float]:
            while True:
                even = self.random.uniform(1 - jitter, 1 + jitter) / rate
                yield self.random.expovariate(rate) if jitter >= 1 else even

        times = gaps()

        def send() -> None:
            if self.now < until:
                self.offer(flow, rows, seconds)
                self.after(next(times), send)

        self.after(next(times), send)

    def closed_loop(
        self,
        flow: Flow,
        rows: int | Iterator[int],
        seconds: float,
        *,
        pause: Callable[[], float] = lambda: 1e-4,
        obeys_retry: bool = True,
    ) -> None:
        """A caller that sends its next request a moment after the answer to the last."""
        sizes = itertools.repeat(rows) if isinstance(rows, int) else rows

        def send() -> None:
            request = self.offer(flow, next(sizes), seconds)
            if request.outcome:
                again(request)
            else:
                request.on_end = again

        def again(request: Request) -> None:
            retry = request.retry_seconds if request.retry_seconds and obeys_retry else 0.0
            self.after(retry + pause(), send)

        self.after(0.0, send)


class Stream:
    """A stream that always has a further message of one item; it reads as turns and its limit allow."""

    def __init__(
        self,
        simulation: Simulation,
        number: int,
        rows: int,
        caller: Caller | None = None,
        seconds: float = 1e6,
        begin: float = 0.0,
    ) -> None:
        self.simulation = simulation
        self.seconds = seconds  # deadline of an item
        self.rows = rows
        self.caller = Caller(CallerRules("streams")) if caller is None else caller
        self.reader = Reader(self.caller, self.caller.stream_flow(number))
        self.reader.on_turn = self._read
        self.open = 0
        self.is_waiting = False
        simulation.after(begin, self._want)

    def _want(self) -> None:
        if self.open >= 32 or self.is_waiting:
            return
        self.is_waiting = True
        if self.simulation.turns.may_read(self.reader, self.simulation.now, is_free=not self.open):
            self.simulation.after(READ_SECONDS, self._read)
        else:
            self.simulation.wait_turn(self.reader)

    def _read(self) -> None:
        simulation = self.simulation
        if not simulation.turns.may_accept(self.reader, simulation.now):
            simulation.wait_turn(self.reader)
            return
        self.is_waiting = False
        request = simulation.offer(self.reader.flow, self.rows, self.seconds, self)
        simulation.turns.on_read(self.reader, self.rows, simulation.now)
        self.open += 1
        request.on_end = self._done
        self._want()

    def _done(self, _: Request) -> None:
        self.open -= 1
        if not self.open and self.simulation.turns.skip(self.reader, self.simulation.now) and self.is_waiting:
            self.simulation.after(READ_SECONDS, self._read)
        self._want()
