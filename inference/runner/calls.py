"""Computes prepared items: each device call takes what is prepared when the device is free."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.clock import Clock, read_cpu_seconds
from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.runner.engines.base import Engine, PreparedItem, RowRange, RowResult
from inference.runner.items import (
    ENGINE_FAILED,
    EXPIRED,
    NOT_FINITE,
    OUT_OF_MEMORY,
    Failure,
    PendingItem,
    answer_outcome,
    failure_outcome,
    is_finite,
)
from inference.runner.plan import (
    Call,
    CallLimits,
    Gathering,
    MemoryLimit,
    WaitingRows,
    choose_call,
    is_device_lost,
    is_out_of_memory,
    limit_rows,
)
from inference.runner.reporting import DeviceProgress, describe_error


class DeviceLost(RuntimeError):
    """The device's context is broken; only a new process can use the device again."""


@dataclass(slots=True)
class ExecutionContext:
    """The loaded model and what was measured of it. Device thread only."""

    engine: Engine
    limits: CallLimits
    cost: CallCost
    clear_cache: Callable[[], None]  # frees the device's cached memory
    progress: DeviceProgress
    clock: Clock
    log: Callable[..., None]
    memory: MemoryLimit = field(default_factory=MemoryLimit)
    gathering: Gathering = field(default_factory=Gathering)
    cpu_seconds: float = 0.0  # CPU time of the process when the last call ended

    @property
    def call_rows(self) -> int:
        """Most rows of the next call."""
        return limit_rows(self.limits, self.cost, self.memory.rows)


@dataclass(slots=True, eq=False)
class _ActiveItem:
    """A prepared item that is not finished."""

    item: PendingItem
    prepared: PreparedItem
    results: list[RowResult] = field(default_factory=list)
    computed_seconds: float = 0.0
    is_alone: bool = False  # a call failed that it shared with others

    def waiting_rows(self) -> WaitingRows:
        start = len(self.results)
        item = self.item
        return WaitingRows(
            item.item_id, start, self.prepared.rows, item.deadline, is_alone=self.is_alone, priority=item.priority
        )


class DeviceCalls:
    """The prepared items, and the calls that compute them. Every item gets exactly one outcome. Device thread only."""

    def __init__(self, context: ExecutionContext, send: Callable[[runner_pb2.ItemsReply], None]) -> None:
        self._context = context
        self._send = send
        self._active: dict[int, _ActiveItem] = {}  # by item id
        self._order: list[tuple[int, int, int]] = []  # priority, arrival and id of the active items, sorted
        self._outcomes: list[runner_pb2.ItemOutcome] = []  # to send
        self._calls: list[runner_pb2.DeviceCall] = []  # to send
        self.idle_seconds = 0.0  # for which nothing was to be computed, since the last call

    def __len__(self) -> int:
        """Items without an outcome."""
        return len(self._active)

    def add(self, item: PendingItem) -> None:
        """Add a prepared item; the next call may take it."""
        if item.prepared is None:
            raise RuntimeError("an item without its preparation cannot be computed")
        gathering = self._context.gathering
        gathering.add(item.ready_at, item.prepared.rows, self._context.cost)
        gathering.is_device_contended = item.is_device_contended
        self._active[item.item_id] = _ActiveItem(item, item.prepared)
        bisect.insort(self._order, (*item.order, item.item_id))

    def choose_wait(self) -> float:
        """Seconds for which the next call should wait for further items; 0 if it should begin."""
        context, rows, now = self._context, self._count_rows(), self._context.clock.monotonic()
        if not rows:
            return 0.0
        wait = context.gathering.choose_wait(now, rows, context.call_rows, context.cost)
        must_start = min(active.item.deadline for active in self._active.values())
        return max(0.0, wait) if now + wait + context.cost.expected(context.call_rows) < must_start else 0.0

    def _count_rows(self) -> int:
        return sum(active.prepared.rows - len(active.results) for active in self._active.values())

    def run_one(self) -> None:
        """Run one device call, and send the outcomes that follow; without items left to compute, only these.

        Raises:
            DeviceLost: some items have no outcome.
        """
        self._drop_unwanted()
        if self._active:
            if self._outcomes:
                self._reply()  # those that failed do not wait for the call
            self._compute(self._choose())
        self._reply()

    def _drop_unwanted(self) -> None:
        """Fail the items that are cancelled, and those whose remaining rows cannot be computed in time."""
        now, cost = self._context.clock.monotonic(), self._context.cost
        for active in list(self._active.values()):
            failure = active.item.find_drop_reason(now)
            if failure is None and now + cost.at_best(active.waiting_rows().rows) > active.item.deadline:
                failure = EXPIRED
            if failure is not None:
                self._fail(active, failure)

    def _choose(self) -> Call:
        context = self._context
        waiting = [self._active[item_id].waiting_rows() for *_, item_id in self._order]
        return choose_call(waiting, context.call_rows, context.clock.monotonic(), context.cost.expected)

    def _compute(self, call: Call) -> None:
        context = self._context
        rows = sum(part.rows for part in call)
        cpu_start = max(context.cpu_seconds, min(self._active[part.item].item.cpu_seconds for part in call))
        context.progress.begin(rows, [part.item for part in call])
        start = context.clock.monotonic()
        try:
            results = self._run_engine(call)
        except Exception as error:  # noqa: BLE001  an error of any kind fails this call only
            seconds = context.clock.monotonic() - start
            self._recover(call, error)
            rows = 0
        else:
            seconds = context.clock.monotonic() - start
            self._record(call, results, seconds)
        context.progress.end()
        context.gathering.end_call(start + seconds, rows, self._count_rows())
        context.cpu_seconds = read_cpu_seconds()
        cpu_seconds = context.cpu_seconds - cpu_start
        self._calls.append(
            runner_pb2.DeviceCall(
                items=len(call),
                rows=rows,
                computed_seconds=seconds,
                cpu_seconds=cpu_seconds,
                idle_seconds=self.idle_seconds,
            )
        )
        self.idle_seconds = 0.0

    def _run_engine(self, call: Call) -> list[tuple[RowResult, ...]]:
        ranges = [RowRange(self._active[part.item].prepared, part.start, part.stop) for part in call]
        results = self._context.engine.compute(ranges)
        if [len(result) for result in results] != [part.rows for part in call]:
            raise RuntimeError("the engine returned a wrong number of results")
        return results

    def _recover(self, call: Call, error: Exception) -> None:
        """Decide what follows a failed call: smaller calls, calls of one item each, or the failure of its only item."""
        context, items = self._context, [self._active[part.item] for part in call]
        rows = sum(part.rows for part in call)
        context.log("device_call_failed", level="warning", items=len(call), rows=rows, error=describe_error(error))
        if is_out_of_memory(error):
            # The traceback references the failed call's tensors.
            error.__traceback__ = None
            context.memory.record_failure(rows)
            context.clear_cache()
            if rows == 1:
                self._fail(items[0], OUT_OF_MEMORY)
        elif is_device_lost(error):
            raise DeviceLost("the device is lost") from error
        elif len(items) == 1:
            self._fail(items[0], ENGINE_FAILED)
        else:
            for active in items:
                active.is_alone = True

    def _record(self, call: Call, results: Sequence[tuple[RowResult, ...]], seconds: float) -> None:
        context = self._context
        rows = sum(part.rows for part in call)
        context.cost.learn(seconds, rows)
        context.memory.record_success(rows, context.limits.max_rows)
        for part, result in zip(call, results, strict=True):
            active = self._active[part.item]
            active.results.extend(result)
            active.computed_seconds += seconds
            if not all(is_finite(row) for row in result):
                self._fail(active, NOT_FINITE)
            elif len(active.results) == active.prepared.rows:
                self._finish(active, answer_outcome(active.item.item_id, active.results))

    def _fail(self, active: _ActiveItem, failure: Failure) -> None:
        self._finish(active, failure_outcome(active.item.item_id, *failure))

    def _finish(self, active: _ActiveItem, outcome: runner_pb2.ItemOutcome) -> None:
        item = active.item
        outcome.prepared_seconds = item.prepared_seconds
        outcome.computed_seconds = active.computed_seconds
        outcome.computed_rows = len(active.results)
        item.prepared = None
        del self._active[item.item_id]
        del self._order[bisect.bisect_left(self._order, (*item.order, item.item_id))]
        self._outcomes.append(outcome)

    def _reply(self) -> None:
        if not self._outcomes and not self._calls:
            return
        reply = runner_pb2.ItemsReply(outcomes=self._outcomes, calls=self._calls, call_rows=self._context.call_rows)
        self._outcomes, self._calls = [], []
        self._send(reply)
