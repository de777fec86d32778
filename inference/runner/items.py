"""The items that a runner has received, and the outcomes that it sends for them."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from common import reasons
from common.clock import read_cpu_seconds
from hotslot.runner.v1 import runner_pb2
from inference.runner.engines.base import PreparedItem, RowResult
from inference.wire import AddressSpan, EntailmentScores, FrameError, Picture, split_items

# Failures: reason and message.
Failure = tuple[str, str]
CANCELLED: Failure = ("CANCELLED", "the request was cancelled")
EXPIRED: Failure = (reasons.DEADLINE_EXPIRED, "the request's deadline leaves too little time to compute it")
ENGINE_FAILED: Failure = ("ENGINE_FAILED", "the engine failed on this item")
NOT_LOADED: Failure = ("ENGINE_FAILED", "no model is loaded")
NOT_FINITE: Failure = (reasons.NOT_FINITE, "the model returned NaN or infinity")
OUT_OF_MEMORY: Failure = (reasons.OUT_OF_MEMORY, "the device has too little memory for one row of this item")


@dataclass(slots=True, eq=False)
class PendingItem:
    """A received item without an outcome."""

    item_id: int
    priority: int  # lower first
    number: int  # in the order of arrival
    deadline: float  # on the monotonic clock
    message: runner_pb2.Item | None  # None once its preparation has ended
    picture: Picture = b""  # a view of the frame that it came in; empty once its preparation has ended
    cpu_seconds: float = 0.0  # CPU time of the process on arrival
    is_cancelled: bool = False
    is_device_contended: bool = False  # another model had rows to compute when it was sent
    prepared: PreparedItem | None = None
    prepared_seconds: float = 0.0
    ready_at: float = 0.0  # on the monotonic clock: when its preparation ended
    outcome: runner_pb2.ItemOutcome | None = None  # set if the item fails before the device computes it

    @property
    def order(self) -> tuple[int, int]:
        """The key by which items are prepared and computed, lowest first."""
        return self.priority, self.number

    def find_drop_reason(self, now: float) -> Failure | None:
        """Return why the item need not be computed: it is cancelled, or its deadline has passed."""
        if self.is_cancelled:
            return CANCELLED
        return EXPIRED if now >= self.deadline else None

    def drop_input(self) -> None:
        """Free what was received: the item is prepared, or has failed."""
        self.message, self.picture = None, b""

    def fail(self, failure: Failure, field: str = "") -> None:
        """Set a failure as the outcome; `field` names the caller's invalid field."""
        self.outcome = failure_outcome(self.item_id, *failure, field)


@dataclass(slots=True)
class ReceivedItems:
    """The received items without an outcome, by id. Any thread."""

    _items: dict[int, PendingItem] = field(default_factory=dict)
    _received: int = 0
    _last_id: int = 0
    _cancelled_early: set[int] = field(default_factory=set)  # the cancellation came first, on the other socket
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, message: runner_pb2.Item, now: float, picture: Picture = b"") -> PendingItem:
        """Start the deadline of an item that has just been received."""
        with self._lock:
            self._received += 1
            self._last_id = max(self._last_id, message.item_id)
            item = PendingItem(
                message.item_id,
                message.priority,
                self._received,
                now + message.seconds_left,
                message,
                picture,
                cpu_seconds=read_cpu_seconds(),
                is_cancelled=message.item_id in self._cancelled_early,
                is_device_contended=message.is_device_contended,
            )
            self._cancelled_early.discard(message.item_id)
            self._items[item.item_id] = item
        return item

    def remove(self, item_ids: Sequence[int]) -> None:
        """Forget items that have their outcome."""
        with self._lock:
            for item_id in item_ids:
                self._items.pop(item_id, None)

    def cancel(self, item_ids: Sequence[int]) -> None:
        """Mark items as cancelled, also those that are still to arrive: ids increase. Others have their outcome."""
        with self._lock:
            for item_id in item_ids:
                if item_id in self._items:
                    self._items[item_id].is_cancelled = True
                elif item_id > self._last_id:
                    self._cancelled_early.add(item_id)


def read_items(payload: bytearray) -> list[tuple[runner_pb2.Item, memoryview]]:
    """Read the payload of a frame of items: each with its picture, a view of the payload.

    Raises:
        FrameError: there is no item, or the pictures are not those of the items.
        DecodeError: the message does not parse.
    """
    message, pictures = split_items(payload)
    # FromString accepts any buffer.
    items = runner_pb2.ComputeItems.FromString(message).items  # type: ignore[arg-type]
    found, at = [], 0
    for item in items:
        end = at + item.picture_bytes
        if not at <= end <= len(pictures):
            raise FrameError(f"a picture of {item.picture_bytes} bytes, of {len(pictures) - at} that are left")
        found.append((item, pictures[at:end]))
        at = end
    if not found or at < len(pictures):
        raise FrameError(f"{len(found)} items, and {len(pictures) - at} bytes more than their pictures")
    return found


def is_finite(result: RowResult) -> bool:
    """Whether all numbers of a result are finite."""
    if isinstance(result, EntailmentScores):
        return math.isfinite(result.yes) and math.isfinite(result.no) and math.isfinite(result.maybe)
    return result is None or all(math.isfinite(span.probability) for span in result)


def answer_outcome(item_id: int, results: Sequence[RowResult]) -> runner_pb2.ItemOutcome:
    """Build the outcome of a completed item; needs at least one result."""
    outcome = runner_pb2.ItemOutcome(item_id=item_id)
    for result in results:
        if isinstance(result, EntailmentScores):
            outcome.entailment.scores.add(yes=result.yes, no=result.no, maybe=result.maybe)
        elif result is not None:
            outcome.address.addresses.add(spans=[_span(span) for span in result])
    return outcome


def failure_outcome(item_id: int, reason: str, message: str, field: str = "") -> runner_pb2.ItemOutcome:
    """Build the outcome of a failed item; `field` names the caller's invalid field."""
    return runner_pb2.ItemOutcome(
        item_id=item_id, failure=runner_pb2.Failure(reason=reason, message=message, field=field)
    )


def postponed_outcome(item_id: int, seconds: float, places: int) -> runner_pb2.ItemOutcome:
    """Build the outcome of an item whose picture takes long; `places` such items may be sent at once."""
    return runner_pb2.ItemOutcome(item_id=item_id, postponed=runner_pb2.Postponed(seconds=seconds, places=places))


def _span(span: AddressSpan) -> runner_pb2.AddressSpan:
    return runner_pb2.AddressSpan(kind=span.kind, start=span.start, end=span.end, probability=span.probability)
