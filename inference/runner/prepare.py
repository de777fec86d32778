"""Decodes and tokenises items on a small thread pool while the device computes the previous batch."""

import math
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.clock import Clock, read_cpu_seconds
from common.errors import InputRefused
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import (
    AddressItem,
    AddressSpan,
    Engine,
    EntailmentItem,
    Item,
    PreparedItem,
    RowResult,
)
from inference.runner.reporting import describe_error
from inference.wire import EntailmentScores


class TaskMissing(ValueError):
    """The server sent an item without a known task."""


def read_item(row: runner_pb2.BatchItem) -> Item:
    """Convert a row of a batch to an engine's item.

    Raises:
        TaskMissing: the row has no task that this build knows.
    """
    match row.WhichOneof("task"):
        case "entailment":
            task = row.entailment
            return EntailmentItem(task.image, tuple(task.statements), task.premise)
        case "address":
            return AddressItem(tuple(row.address.addresses))
        case _:
            raise TaskMissing(f"item {row.item_id} has no task")


def is_finite(result: RowResult) -> bool:
    """Whether all numbers of a result are finite."""
    if isinstance(result, EntailmentScores):
        return math.isfinite(result.yes) and math.isfinite(result.no) and math.isfinite(result.maybe)
    return all(math.isfinite(span.probability) for span in result)


def answer_outcome(item_id: int, results: Sequence[RowResult]) -> runner_pb2.ItemOutcome:
    """Build the outcome of a completed item; needs at least one result."""
    outcome = runner_pb2.ItemOutcome(item_id=item_id)
    for result in results:
        if isinstance(result, EntailmentScores):
            outcome.entailment.scores.add(yes=result.yes, no=result.no, maybe=result.maybe)
        else:
            outcome.address.addresses.add(spans=[_span(span) for span in result])
    return outcome


def failure_outcome(item_id: int, reason: str, message: str, field: str = "") -> runner_pb2.ItemOutcome:
    """Build the outcome of a failed item; `field` names the caller's invalid field."""
    return runner_pb2.ItemOutcome(
        item_id=item_id, failure=runner_pb2.Failure(reason=reason, message=message, field=field)
    )


def _span(span: AddressSpan) -> runner_pb2.AddressSpan:
    return runner_pb2.AddressSpan(kind=span.kind, start=span.start, end=span.end, probability=span.probability)


CANCELLED = ("CANCELLED", "the request was cancelled")
EXPIRED = ("DEADLINE_EXPIRED", "the request's deadline passed before it was computed")
ENGINE_FAILED = ("ENGINE_FAILED", "the engine failed on this item")
NOT_LOADED = ("ENGINE_FAILED", "no model is loaded")


@dataclass(slots=True, eq=False)
class PendingItem:
    """A received item without an outcome."""

    item_id: int
    deadline: float  # on the monotonic clock
    row: runner_pb2.BatchItem | None  # None once it is prepared
    is_cancelled: bool = False
    prepared: PreparedItem | None = None
    prepared_seconds: float = 0.0
    outcome: runner_pb2.ItemOutcome | None = None  # set if the item fails before the device computes it

    def find_drop_reason(self, now: float) -> tuple[str, str] | None:
        """Return reason and message if the item is cancelled or its deadline has passed."""
        if self.is_cancelled:
            return CANCELLED
        return EXPIRED if now >= self.deadline else None

    def fail(self, reason: tuple[str, str], field: str = "") -> None:
        """Set a failure as the outcome; `field` names the caller's invalid field."""
        self.outcome = failure_outcome(self.item_id, *reason, field)


@dataclass(slots=True, eq=False)
class PendingBatch:
    """A received batch, until its last outcome."""

    batch_id: int
    items: Sequence[PendingItem]
    cpu_seconds: float  # CPU time of the process on arrival
    is_prepared: threading.Event = field(default_factory=threading.Event)
    is_done: bool = False  # every item has its outcome
    _unprepared: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Initialise the count of unprepared items."""
        self._unprepared = len(self.items)

    def mark_prepared(self) -> None:
        """Record that preparing one item has ended, with or without success. Any thread."""
        with self._lock:
            self._unprepared -= 1
            if self._unprepared == 0:
                self.is_prepared.set()


def open_batch(batch: runner_pb2.ComputeBatch, now: float) -> PendingBatch:
    """Start the deadlines of a batch that has just been received."""
    items = [PendingItem(row.item_id, now + row.seconds_left, row) for row in batch.items]
    return PendingBatch(batch.batch_id, items, read_cpu_seconds())


class PreparePool:
    """Threads that prepare items in order of arrival."""

    def __init__(self, threads: int, clock: Clock, log: Callable[..., None]) -> None:
        self._clock = clock
        self._log = log
        self._waiting: queue.SimpleQueue[tuple[Engine | None, PendingBatch, PendingItem]] = queue.SimpleQueue()
        for number in range(max(1, threads)):
            threading.Thread(target=self._work, name=f"prepare-{number}", daemon=True).start()

    def submit(self, engine: Engine | None, batch: PendingBatch) -> None:
        """Queue all items of a batch, which has at least one; sets `batch.is_prepared` when all have ended."""
        for item in batch.items:
            self._waiting.put((engine, batch, item))

    def _work(self) -> None:
        while True:
            engine, batch, item = self._waiting.get()
            self._prepare(engine, item)
            batch.mark_prepared()

    def _prepare(self, engine: Engine | None, item: PendingItem) -> None:
        start = self._clock.monotonic()
        drop_reason = item.find_drop_reason(start)
        row, item.row = item.row, None
        if engine is None or row is None or drop_reason:
            item.fail(drop_reason or NOT_LOADED)
            return
        try:
            item.prepared = engine.prepare(read_item(row))
        except InputRefused as refusal:
            item.fail((refusal.reason, str(refusal)), refusal.field)
        except Exception as error:  # noqa: BLE001  an error of any kind fails this item only
            self._log("prepare_failed", level="warning", item_id=item.item_id, error=describe_error(error))
            item.fail(ENGINE_FAILED)
        item.prepared_seconds = self._clock.monotonic() - start
