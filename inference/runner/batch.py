"""One batch on the device: packed into calls, split where memory is short, answered as items are whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from common.clock import Clock, read_cpu_seconds
from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.runner import prepare
from inference.runner.engines.base import Chunk, Engine, Prepared, UnitResult
from inference.runner.plan import CallLimits, Cut, MemoryLimit, by_item, halve, next_call, rows_allowed
from inference.runner.prepare import ENGINE_FAILED, PendingBatch, PendingItem
from inference.runner.reporting import Pulse, describe

NOT_FINITE = ("NOT_FINITE", "the model's answer is not a number")
OUT_OF_MEMORY = ("OUT_OF_MEMORY", "the device has no memory left for even one row of this item")


class DeviceLost(RuntimeError):
    """The device's context is broken; only a new process can compute on it again."""


class Faults(Protocol):
    """How errors of a device call are told apart, and what can be done about memory."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        ...

    def is_device_lost(self, error: BaseException) -> bool:
        """Whether nothing will succeed any more."""
        ...

    def clear_cache(self) -> None:
        """Give back what memory can be given back."""
        ...


@dataclass(slots=True)
class Bench:
    """What stays from batch to batch: the model, and what was learned about it. Device thread only."""

    engine: Engine
    limits: CallLimits
    cost: RowCost
    faults: Faults
    pulse: Pulse
    clock: Clock
    log: Callable[..., None]
    memory: MemoryLimit = field(default_factory=MemoryLimit)
    cpu_seconds: float = 0.0  # of the process, when the last batch ended

    @property
    def call_rows(self) -> int:
        """How many rows the next call may carry."""
        return rows_allowed(self.limits, self.cost.row_seconds, self.memory.rows)


@dataclass(slots=True, eq=False)
class _Work:
    """A prepared item on the device."""

    item: PendingItem
    prepared: Prepared
    results: list[UnitResult] = field(default_factory=list)
    computed_seconds: float = 0.0


class BatchRun:
    """Computes one batch; every item gets exactly one outcome, the last reply says `done`."""

    def __init__(self, bench: Bench, batch: PendingBatch, say: Callable[[runner_pb2.BatchReply], None]) -> None:
        self._bench = bench
        self._batch = batch
        self._say = say
        self._works: dict[int, _Work] = {}  # without an outcome, by place in the batch
        self._ended: list[runner_pb2.ItemOutcome] = []  # not told yet
        self._computed_seconds = 0.0
        self._rows = 0
        self._cpu_begun = max(bench.cpu_seconds, batch.cpu_seconds)

    def run(self) -> None:
        """Compute it. The device thread's alone.

        Raises:
            DeviceLost: items are left without an outcome.
        """
        self._batch.is_prepared.wait()
        self._bench.pulse.step()
        self._collect()
        while self._drop_dead():
            if self._ended:
                self._tell(is_done=False)
            self._compute(next_call(self._left(), self._bench.call_rows))
            if self._works:
                self._tell(is_done=False)
        self._tell(is_done=True)
        self._bench.cpu_seconds = read_cpu_seconds()

    def _collect(self) -> None:
        for place, item in enumerate(self._batch.items):
            if item.outcome is not None:
                self._end(item, item.outcome)
            elif item.prepared is None or item.prepared.rows < 1:
                self._end(item, prepare.failure(item.item_id, *ENGINE_FAILED))
            else:
                self._works[place] = _Work(item, item.prepared)

    def _drop_dead(self) -> bool:
        """Let go of what nobody waits for; whether anything is left to compute."""
        now = self._bench.clock.monotonic()
        for place, work in list(self._works.items()):
            why = work.item.dead(now)
            if why is not None:
                self._fail(place, why)
        return bool(self._works)

    def _left(self) -> list[Cut]:
        return [Cut(place, len(work.results), work.prepared.rows) for place, work in self._works.items()]

    def _compute(self, call: Sequence[Cut]) -> None:
        stack = [tuple(call)]
        while stack:
            # A half of a split call may have ended an item that the other half holds too.
            cuts = tuple(cut for cut in stack.pop() if cut.item in self._works)
            if not cuts:
                continue
            if self._bench.memory.is_over(sum(cut.rows for cut in cuts)):
                stack.extend(reversed(halve(cuts)))  # the other half of a split call: as large as what did not fit
                continue
            try:
                results, seconds = self._call(cuts)
            except Exception as error:  # noqa: BLE001  whatever it is, it is this call's alone
                stack.extend(reversed(self._recover(cuts, error)))
            else:
                self._take(cuts, results, seconds)
            self._bench.pulse.step()

    def _call(self, cuts: Sequence[Cut]) -> tuple[list[tuple[UnitResult, ...]], float]:
        chunks = [Chunk(self._works[cut.item].prepared, cut.start, cut.stop) for cut in cuts]
        begun = self._bench.clock.monotonic()
        try:
            results = self._bench.engine.compute(chunks)
        finally:
            seconds = self._bench.clock.monotonic() - begun
            self._computed_seconds += seconds
        if [len(result) for result in results] != [cut.rows for cut in cuts]:
            raise RuntimeError("the engine's results do not match its chunks")
        return results, seconds

    def _recover(self, cuts: Sequence[Cut], error: Exception) -> list[tuple[Cut, ...]]:
        """What to compute instead of a call that failed."""
        bench = self._bench
        rows = sum(cut.rows for cut in cuts)
        bench.log(
            "device_call_failed", level="warning", batch_id=self._batch.batch_id, rows=rows, error=describe(error)
        )
        if bench.faults.is_out_of_memory(error):
            # The traceback holds the failed call's tensors until it is let go.
            error.__traceback__ = None
            bench.memory.ran_out(rows)
            bench.faults.clear_cache()
            again, why = halve(cuts), OUT_OF_MEMORY
        elif bench.faults.is_device_lost(error):
            raise DeviceLost("the device is lost") from error
        else:
            again, why = by_item(cuts) if len(cuts) > 1 else [], ENGINE_FAILED
        if not again:
            self._fail(cuts[0].item, why)
        return again

    def _take(self, cuts: Sequence[Cut], results: Sequence[tuple[UnitResult, ...]], seconds: float) -> None:
        bench = self._bench
        rows = sum(cut.rows for cut in cuts)
        self._rows += rows
        bench.cost.learn(seconds, rows)
        bench.memory.fitted(rows, bench.limits.max_rows)
        for cut, result in zip(cuts, results, strict=True):
            work = self._works[cut.item]
            work.results.extend(result)
            work.computed_seconds += seconds
            if not all(prepare.is_finite(row) for row in result):
                self._fail(cut.item, NOT_FINITE)
            elif len(work.results) == work.prepared.rows:
                del self._works[cut.item]
                self._end(work.item, prepare.answer(work.item.item_id, work.results), work.computed_seconds)

    def _fail(self, place: int, why: tuple[str, str]) -> None:
        work = self._works.pop(place)
        self._end(work.item, prepare.failure(work.item.item_id, *why), work.computed_seconds)

    def _end(self, item: PendingItem, outcome: runner_pb2.ItemOutcome, computed_seconds: float = 0.0) -> None:
        outcome.prepared_seconds = item.prepared_seconds
        outcome.computed_seconds = computed_seconds
        item.prepared = None
        self._ended.append(outcome)

    def _tell(self, *, is_done: bool) -> None:
        reply = runner_pb2.BatchReply(
            batch_id=self._batch.batch_id,
            outcomes=self._ended,
            done=is_done,
            computed_seconds=self._computed_seconds,
            cpu_seconds=read_cpu_seconds() - self._cpu_begun,
            rows=self._rows,
        )
        self._ended = []
        self._say(reply)
