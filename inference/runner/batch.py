"""Computes one batch: packs its items into device calls, splits calls that do not fit, replies as items finish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.clock import Clock, read_cpu_seconds
from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.runner import prepare
from inference.runner.engines.base import Engine, PreparedItem, RowRange, RowResult
from inference.runner.plan import (
    Call,
    CallLimits,
    MemoryLimit,
    halve_call,
    is_device_lost,
    is_out_of_memory,
    limit_rows,
    next_call,
    split_by_item,
)
from inference.runner.prepare import ENGINE_FAILED, PendingBatch, PendingItem
from inference.runner.reporting import DeviceProgress, describe_error

NOT_FINITE = ("NOT_FINITE", "the model returned NaN or infinity")
OUT_OF_MEMORY = ("OUT_OF_MEMORY", "the device has too little memory for one row of this item")


class DeviceLost(RuntimeError):
    """The device's context is broken; only a new process can use the device again."""


@dataclass(slots=True)
class ExecutionContext:
    """The loaded model and what was measured of it; kept from batch to batch. Device thread only."""

    engine: Engine
    limits: CallLimits
    cost: RowCost
    clear_cache: Callable[[], None]  # frees the device's cached memory
    progress: DeviceProgress
    clock: Clock
    log: Callable[..., None]
    memory: MemoryLimit = field(default_factory=MemoryLimit)
    cpu_seconds: float = 0.0  # CPU time of the process when the last batch ended

    @property
    def call_rows(self) -> int:
        """Most rows of the next call."""
        return limit_rows(self.limits, self.cost.row_seconds, self.memory.rows)


@dataclass(slots=True, eq=False)
class _ActiveItem:
    """A prepared item that is not finished."""

    item: PendingItem
    prepared: PreparedItem
    results: list[RowResult] = field(default_factory=list)
    computed_seconds: float = 0.0


class BatchRun:
    """Computes one batch. Every item gets exactly one outcome; the last reply has `done` set."""

    def __init__(
        self, context: ExecutionContext, batch: PendingBatch, send: Callable[[runner_pb2.BatchReply], None]
    ) -> None:
        self._context = context
        self._batch = batch
        self._send = send
        self._active: dict[int, _ActiveItem] = {}  # by index in the batch
        self._unsent: list[runner_pb2.ItemOutcome] = []
        self._computed_seconds = 0.0
        self._rows = 0
        self._cpu_start = max(context.cpu_seconds, batch.cpu_seconds)

    def run(self) -> None:
        """Compute the batch. Device thread only.

        Raises:
            DeviceLost: some items have no outcome.
        """
        self._batch.is_prepared.wait()
        self._context.progress.advance()
        self._collect()
        while self._drop_unwanted():
            if self._unsent:
                self._send_reply(is_done=False)
            self._compute(next_call(self._remaining(), self._context.call_rows))
            if self._active:
                self._send_reply(is_done=False)
        self._send_reply(is_done=True)
        self._context.cpu_seconds = read_cpu_seconds()

    def _collect(self) -> None:
        for index, item in enumerate(self._batch.items):
            if item.outcome is not None:
                self._finish(item, item.outcome)
            elif item.prepared is None or item.prepared.rows < 1:
                self._finish(item, prepare.failure_outcome(item.item_id, *ENGINE_FAILED))
            else:
                self._active[index] = _ActiveItem(item, item.prepared)

    def _drop_unwanted(self) -> bool:
        """Fail items that are cancelled or expired; return whether any item is left to compute."""
        now = self._context.clock.monotonic()
        for index, active in list(self._active.items()):
            reason = active.item.find_drop_reason(now)
            if reason is not None:
                self._fail(index, reason)
        return bool(self._active)

    def _remaining(self) -> list[RowRange[int]]:
        return [RowRange(index, len(active.results), active.prepared.rows) for index, active in self._active.items()]

    def _compute(self, call: Call) -> None:
        stack = [call]
        while stack:
            # Items may have failed in the other half of a split call.
            ranges = tuple(part for part in stack.pop() if part.item in self._active)
            if not ranges:
                continue
            if self._context.memory.is_exceeded_by(sum(part.rows for part in ranges)):
                stack.extend(reversed(halve_call(ranges)))  # the other half is as large as the one that did not fit
                continue
            try:
                results, seconds = self._call(ranges)
            except Exception as error:  # noqa: BLE001  an error of any kind fails this call only
                stack.extend(reversed(self._recover(ranges, error)))
            else:
                self._record(ranges, results, seconds)
            self._context.progress.advance()

    def _call(self, call: Call) -> tuple[list[tuple[RowResult, ...]], float]:
        ranges = [RowRange(self._active[part.item].prepared, part.start, part.stop) for part in call]
        start = self._context.clock.monotonic()
        try:
            results = self._context.engine.compute(ranges)
        finally:
            seconds = self._context.clock.monotonic() - start
            self._computed_seconds += seconds
        if [len(result) for result in results] != [part.rows for part in call]:
            raise RuntimeError("the engine returned a wrong number of results")
        return results, seconds

    def _recover(self, call: Call, error: Exception) -> list[Call]:
        """Return the calls to run instead of a failed one; fails the item if there is nothing to retry."""
        context = self._context
        rows = sum(part.rows for part in call)
        context.log(
            "device_call_failed", level="warning", batch_id=self._batch.batch_id, rows=rows, error=describe_error(error)
        )
        if is_out_of_memory(error):
            # The traceback references the failed call's tensors.
            error.__traceback__ = None
            context.memory.record_failure(rows)
            context.clear_cache()
            retries, reason = halve_call(call), OUT_OF_MEMORY
        elif is_device_lost(error):
            raise DeviceLost("the device is lost") from error
        else:
            retries, reason = split_by_item(call) if len(call) > 1 else [], ENGINE_FAILED
        if not retries:
            self._fail(call[0].item, reason)
        return retries

    def _record(self, call: Call, results: Sequence[tuple[RowResult, ...]], seconds: float) -> None:
        context = self._context
        rows = sum(part.rows for part in call)
        self._rows += rows
        context.cost.learn(seconds, rows)
        context.memory.record_success(rows, context.limits.max_rows)
        for part, result in zip(call, results, strict=True):
            active = self._active[part.item]
            active.results.extend(result)
            active.computed_seconds += seconds
            if not all(prepare.is_finite(row) for row in result):
                self._fail(part.item, NOT_FINITE)
            elif len(active.results) == active.prepared.rows:
                del self._active[part.item]
                outcome = prepare.answer_outcome(active.item.item_id, active.results)
                self._finish(active.item, outcome, active.computed_seconds)

    def _fail(self, index: int, reason: tuple[str, str]) -> None:
        active = self._active.pop(index)
        self._finish(active.item, prepare.failure_outcome(active.item.item_id, *reason), active.computed_seconds)

    def _finish(self, item: PendingItem, outcome: runner_pb2.ItemOutcome, computed_seconds: float = 0.0) -> None:
        outcome.prepared_seconds = item.prepared_seconds
        outcome.computed_seconds = computed_seconds
        item.prepared = None
        self._unsent.append(outcome)

    def _send_reply(self, *, is_done: bool) -> None:
        reply = runner_pb2.BatchReply(
            batch_id=self._batch.batch_id,
            outcomes=self._unsent,
            done=is_done,
            computed_seconds=self._computed_seconds,
            cpu_seconds=read_cpu_seconds() - self._cpu_start,
            rows=self._rows,
        )
        self._unsent = []
        self._send(reply)
