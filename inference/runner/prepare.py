"""Decoding and tokenising on a small pool, while the device computes the batch before."""

import math
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.clock import Clock, read_cpu_seconds
from common.errors import InputRefused
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import AddressItem, AddressSpan, Engine, EntailmentItem, Item, Prepared, UnitResult
from inference.runner.reporting import describe
from inference.wire import EntailmentScores


class TaskMissing(ValueError):
    """An item without a task; the server's mistake."""


def read_item(row: runner_pb2.BatchItem) -> Item:
    """What is to be computed of a row.

    Raises:
        TaskMissing: nothing that this build knows.
    """
    match row.WhichOneof("task"):
        case "entailment":
            asked = row.entailment
            return EntailmentItem(asked.image, tuple(asked.statements), asked.premise)
        case "address":
            return AddressItem(tuple(row.address.addresses))
        case _:
            raise TaskMissing(f"item {row.item_id} has no task")


def is_finite(result: UnitResult) -> bool:
    """Whether a result holds numbers and nothing else."""
    if isinstance(result, EntailmentScores):
        return math.isfinite(result.yes) and math.isfinite(result.no) and math.isfinite(result.maybe)
    return all(math.isfinite(span.probability) for span in result)


def answer(item_id: int, results: Sequence[UnitResult]) -> runner_pb2.ItemOutcome:
    """The outcome of an item that is computed whole; at least one result."""
    outcome = runner_pb2.ItemOutcome(item_id=item_id)
    for result in results:
        if isinstance(result, EntailmentScores):
            outcome.entailment.scores.add(yes=result.yes, no=result.no, maybe=result.maybe)
        else:
            outcome.address.addresses.add(spans=[_span(span) for span in result])
    return outcome


def failure(item_id: int, reason: str, message: str, field: str = "") -> runner_pb2.ItemOutcome:
    """The outcome of an item that has no answer."""
    return runner_pb2.ItemOutcome(
        item_id=item_id, failure=runner_pb2.Failure(reason=reason, message=message, field=field)
    )


def _span(span: AddressSpan) -> runner_pb2.AddressSpan:
    return runner_pb2.AddressSpan(kind=span.kind, start=span.start, end=span.end, probability=span.probability)


CANCELLED = ("CANCELLED", "nobody waits for this item any more")
EXPIRED = ("DEADLINE_EXPIRED", "the item's time was over before it was computed")
ENGINE_FAILED = ("ENGINE_FAILED", "the engine failed on this item")
NOT_LOADED = ("ENGINE_FAILED", "no model is loaded")


@dataclass(slots=True, eq=False)
class PendingItem:
    """An item from its frame to its outcome."""

    item_id: int
    deadline: float  # on the monotonic clock
    row: runner_pb2.BatchItem | None  # let go of once it is prepared
    is_cancelled: bool = False
    prepared: Prepared | None = None
    prepared_seconds: float = 0.0
    outcome: runner_pb2.ItemOutcome | None = None  # set by whoever ends it before the device does

    def dead(self, now: float) -> tuple[str, str] | None:
        """Reason and sentence, if there is no use in working on it."""
        if self.is_cancelled:
            return CANCELLED
        return EXPIRED if now >= self.deadline else None

    def fail(self, why: tuple[str, str], at: str = "") -> None:
        """End it without an answer; `at` is the caller's field, if the caller is to blame."""
        self.outcome = failure(self.item_id, *why, at)


@dataclass(slots=True, eq=False)
class PendingBatch:
    """A batch from its frame to its last outcome."""

    batch_id: int
    items: Sequence[PendingItem]
    cpu_seconds: float  # of the process, when it came
    is_prepared: threading.Event = field(default_factory=threading.Event)
    is_done: bool = False  # every item has its outcome
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Count what is to be prepared."""
        self._open = len(self.items)

    def one_prepared(self) -> None:
        """An item is prepared, or will never be."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                self.is_prepared.set()


def receive(batch: runner_pb2.ComputeBatch, now: float) -> PendingBatch:
    """Take over a batch that has just come."""
    items = [PendingItem(row.item_id, now + row.seconds_left, row) for row in batch.items]
    return PendingBatch(batch.batch_id, items, read_cpu_seconds())


class PreparePool:
    """A few threads that prepare items in the order they came."""

    def __init__(self, threads: int, clock: Clock, log: Callable[..., None]) -> None:
        self._clock = clock
        self._log = log
        self._waiting: queue.SimpleQueue[tuple[Engine | None, PendingBatch, PendingItem]] = queue.SimpleQueue()
        for number in range(max(1, threads)):
            threading.Thread(target=self._work, name=f"prepare-{number}", daemon=True).start()

    def submit(self, engine: Engine | None, batch: PendingBatch) -> None:
        """Prepare all items of a batch; it tells when that is done. At least one item."""
        for item in batch.items:
            self._waiting.put((engine, batch, item))

    def _work(self) -> None:
        while True:
            engine, batch, item = self._waiting.get()
            self._prepare(engine, item)
            batch.one_prepared()

    def _prepare(self, engine: Engine | None, item: PendingItem) -> None:
        begun = self._clock.monotonic()
        why = item.dead(begun)
        row, item.row = item.row, None
        if engine is None or row is None or why:
            item.fail(why or NOT_LOADED)
            return
        try:
            item.prepared = engine.prepare(read_item(row))
        except InputRefused as refusal:
            item.fail((refusal.reason, str(refusal)), refusal.field)
        except Exception as error:  # noqa: BLE001  one item's trouble is never another's
            self._log("prepare_failed", level="warning", item_id=item.item_id, error=describe(error))
            item.fail(ENGINE_FAILED)
        item.prepared_seconds = self._clock.monotonic() - begun
