"""Decodes and tokenises items on a small thread pool while the device computes others."""

import queue
import threading
from collections.abc import Callable

from common.clock import Clock
from common.errors import InputRefused
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import AddressItem, Engine, EntailmentItem, Item
from inference.runner.items import ENGINE_FAILED, NOT_LOADED, PendingItem
from inference.runner.reporting import describe_error


class TaskMissing(ValueError):
    """The server sent an item without a known task."""


def read_item(message: runner_pb2.Item) -> Item:
    """Convert a message to an engine's item.

    Raises:
        TaskMissing: the message has no task that this build knows.
    """
    match message.WhichOneof("task"):
        case "entailment":
            task = message.entailment
            return EntailmentItem(task.image, tuple(task.statements), task.premise)
        case "address":
            return AddressItem(tuple(message.address.addresses))
        case _:
            raise TaskMissing(f"item {message.item_id} has no task")


class PreparePool:
    """Threads that prepare items, by priority and then in order of arrival.

    Args:
        on_end: called once for each submitted item, from any thread, when it has `prepared` or `outcome` set.
    """

    def __init__(
        self, threads: int, clock: Clock, log: Callable[..., None], on_end: Callable[[PendingItem], None]
    ) -> None:
        self._clock = clock
        self._log = log
        self._on_end = on_end
        self._waiting: queue.PriorityQueue[tuple[int, int, Engine | None, PendingItem]] = queue.PriorityQueue()
        self._begun: dict[int, float] = {}  # by item id: when its preparation began
        for number in range(max(1, threads)):
            threading.Thread(target=self._work, name=f"prepare-{number}", daemon=True).start()

    def submit(self, engine: Engine | None, item: PendingItem) -> None:
        """Queue an item. Any thread."""
        self._waiting.put((*item.order, engine, item))

    def measure(self) -> tuple[int, float]:
        """Return how many preparations have begun and not ended, and the seconds of the oldest. Any thread."""
        begun = list(self._begun.values())
        return len(begun), self._clock.monotonic() - min(begun) if begun else 0.0

    def _work(self) -> None:
        while True:
            *_, engine, item = self._waiting.get()
            self._begun[item.item_id] = self._clock.monotonic()
            self._prepare(engine, item)
            item.prepared_seconds = self._clock.monotonic() - self._begun.pop(item.item_id)
            self._on_end(item)

    def _prepare(self, engine: Engine | None, item: PendingItem) -> None:
        drop_reason = item.find_drop_reason(self._clock.monotonic())
        message, item.message = item.message, None
        if engine is None or message is None or drop_reason:
            item.fail(drop_reason or NOT_LOADED)
            return
        try:
            item.prepared = engine.prepare(read_item(message))
        except InputRefused as refusal:
            item.fail((refusal.reason, str(refusal)), refusal.field)
        except Exception as error:  # noqa: BLE001  an error of any kind fails this item only
            self._log("prepare_failed", level="warning", item_id=item.item_id, error=describe_error(error))
            item.fail(ENGINE_FAILED)
        else:
            if item.prepared.rows < 1:
                item.fail(ENGINE_FAILED)
