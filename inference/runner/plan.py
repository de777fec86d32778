"""Pure decisions about the device: which rows a call carries, what an error means, whether a load fits."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from inference.call_cost import CallCost
from inference.runner.engines.base import MemoryEstimate, RowRange

Call = tuple[RowRange[int], ...]  # `item` is the item's id


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of one device call."""

    max_rows: int  # at least 1
    max_seconds: float  # expected duration; 0 for no limit


def choose_max_rows(setting: int, engine_rows: int) -> int:
    """Return the most rows of a call: the setting (0: none), at most the engine's, for which memory was planned."""
    return max(1, min(setting or engine_rows, engine_rows))


def limit_rows(limits: CallLimits, cost: CallCost, memory_rows: int | None) -> int:
    """Return the most rows that the next call may carry.

    Args:
        limits: of the server and the engine.
        cost: measured.
        memory_rows: limit learnt from memory errors; None if there was none.

    Returns:
        At least 1: a row that takes longer than the limit must still be computed.
    """
    allowed = limits.max_rows if memory_rows is None else min(limits.max_rows, memory_rows)
    if limits.max_seconds > 0 and cost.row_seconds > 0:
        allowed = min(allowed, math.floor((limits.max_seconds - cost.overhead_seconds) / cost.row_seconds))
    return max(1, allowed)


@dataclass(frozen=True, slots=True)
class WaitingRows:
    """The rows of a prepared item that are not computed yet."""

    item: int  # its id
    start: int  # first row
    stop: int  # row after the last
    deadline: float  # of the item
    is_alone: bool = False  # shares no call with other items
    priority: int = 0

    @property
    def rows(self) -> int:
        """Number of rows, at least 1."""
        return self.stop - self.start


MIN_RATE_SHARE = 0.95  # of the rows a second that a call without the items with the earliest deadlines would compute


def choose_call(
    waiting: Sequence[WaitingRows], max_rows: int, now: float, expected_seconds: Callable[[int], float]
) -> Call:
    """Choose the rows of the next call: the first item's, and as many of the others as fit.

    An item that fits into one call is not split, because its rows share work (the picture); one that does not fit into
    what is left waits for the next call, and those behind it may go first. An item that is larger than a call is split
    and fills the remaining capacity. An item joins the call only if the call is then expected to end early enough for
    it and for all before it: no item is made late by those behind it.

    While more waits than a call takes, items whose deadlines would make the call so small that it computes less than
    `MIN_RATE_SHARE` of what others of their priority could have are left out, and fail if they cannot be computed
    later. Otherwise a queue in which all items are close to their deadlines, as in overload, would be computed in
    calls of a few rows, and fewer items in time.

    Args:
        waiting: the items, in the order in which they are to be computed; at least one.
        max_rows: at least 1.
        now: the clock, seconds; deadlines are on the same clock.
        expected_seconds: of a call of so many rows; 0 if unknown.
    """
    waiting = _leave_out_later(waiting, max_rows, expected_seconds)
    call = _fill_call(waiting, max_rows, now, expected_seconds)
    first, rows = waiting[0], sum(part.rows for part in call)
    if first.is_alone or rows >= MIN_RATE_SHARE * max_rows or sum(part.rows for part in waiting) <= max_rows:
        return call
    same = {part.item for part in waiting if part.priority == first.priority}
    rate = _rows_per_second(call, same, expected_seconds)
    urgent = sorted((part for part in waiting if part.item in same), key=lambda part: part.deadline)
    count = 1
    while count < len(urgent):
        left_out = {part.item for part in urgent[:count]}
        others = [part for part in waiting if part.item not in left_out]
        rival = _fill_call(others, max_rows, now, expected_seconds)
        if rate < MIN_RATE_SHARE * _rows_per_second(rival, same, expected_seconds):
            return rival
        count *= 2
    return call


def _leave_out_later(
    waiting: Sequence[WaitingRows], max_rows: int, expected_seconds: Callable[[int], float]
) -> Sequence[WaitingRows]:
    """The items of the first one's priority; all items if a call of these alone would cost the device too much.

    A call that is filled up ends later. Rows that are left out need a call of their own, which costs the overhead of a
    call once more: it must be small beside what is computed now.
    """
    same = [part for part in waiting if part.priority == waiting[0].priority]
    seconds = expected_seconds(min(max_rows, sum(part.rows for part in same)))
    overhead = 2 * expected_seconds(1) - expected_seconds(2)
    return same if seconds > 0 and overhead <= (1 - MIN_RATE_SHARE) * seconds else waiting


def _fill_call(
    waiting: Sequence[WaitingRows], max_rows: int, now: float, expected_seconds: Callable[[int], float]
) -> Call:
    call: list[RowRange[int]] = []
    capacity, must_end = max_rows, math.inf
    for part in waiting:
        if part.is_alone and call:
            continue
        rows = min(part.rows, capacity) if part.rows > max_rows else part.rows
        if rows == 0 or rows > capacity:
            continue
        # The rows that are left after this call need time too.
        must_end_with = min(must_end, part.deadline - expected_seconds(part.rows - rows))
        if call and now + expected_seconds(max_rows - capacity + rows) > must_end_with:
            continue
        call.append(RowRange(part.item, part.start, part.start + rows))
        capacity, must_end = capacity - rows, must_end_with
        if part.is_alone or capacity == 0:
            break
    return tuple(call)


def _rows_per_second(call: Call, items: Collection[int], expected_seconds: Callable[[int], float]) -> float:
    """Rows of some items that a call computes a second; 0 if its duration is unknown."""
    seconds = expected_seconds(sum(part.rows for part in call))
    return sum(part.rows for part in call if part.item in items) / seconds if seconds > 0 else 0.0


CLEAR_ABOVE = 0.9  # share of the card in use by all processes above which cached memory is freed
_OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",  # the CPU's allocator
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cublasCreate has no memory for a handle
    "CUDNN_STATUS_NOT_INITIALIZED",  # cudnnCreate, likewise
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    # torch tries every algorithm of a convolution, ignores why each failed, and reports this: no workspace was left.
    "unable to find an engine to execute this computation",
)
GOOD_CALLS_TO_GROW = 64  # at the learnt limit, before it is doubled


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; recognised by name, so that no device library is imported."""
    if isinstance(error, MemoryError):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    # A CPU's allocator, the driver, cuBLAS and cuDNN raise plain RuntimeErrors.
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error means that the device's context is broken, so that every later call would fail."""
    if is_out_of_memory(error):
        return False
    if any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


class MemoryLimit:
    """Limit of rows in a call, learnt from memory errors; each halves it, `GOOD_CALLS_TO_GROW` calls double it."""

    def __init__(self) -> None:
        self.rows: int | None = None  # None: no limit
        self._good_calls = 0

    def record_failure(self, rows: int) -> None:
        """Record that a call of `rows` ran out of memory."""
        self.rows = max(1, rows // 2)
        self._good_calls = 0

    def record_success(self, rows: int, max_rows: int) -> None:
        """Record that a call of `rows` fitted; `max_rows` is the size of calls without this limit."""
        if self.rows is None or rows < self.rows:
            return
        self._good_calls += 1
        if self._good_calls >= GOOD_CALLS_TO_GROW:
            self._good_calls = 0
            self.rows = self.rows * 2 if self.rows * 2 < max_rows else None


def should_clear(used_bytes: int, total_bytes: int) -> bool:
    """Whether a card is so full that cached memory should be freed before memory runs out."""
    return total_bytes > 0 and used_bytes > CLEAR_ABOVE * total_bytes


MARGIN = 1.1  # factor on the engine's estimate: allocators round up, libraries keep workspaces
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Memory that a load needs and that is free, in bytes."""

    device: str
    needed: int  # with the margin
    free: int | None  # None if unknown; without what other loads have planned
    reserved: int = 0  # what other loads have planned and not taken yet

    @property
    def fits(self) -> bool:
        """Whether the load may start; unknown free memory does not refuse it."""
        return self.free is None or self.needed <= self.free

    @property
    def message(self) -> str:
        """Both numbers in a sentence."""
        free = "unknown" if self.free is None else f"{self.free / _MIB:.0f} MiB"
        others = f" beside {self.reserved / _MIB:.0f} MiB that other models need" if self.reserved >= _MIB else ""
        return f"the model needs about {self.needed / _MIB:.0f} MiB on {self.device}; {free} are free{others}"


def plan_load(device: str, estimate: MemoryEstimate, free: int | None, reserved: int = 0) -> LoadPlan:
    """Compare an estimate, plus `MARGIN`, with free memory.

    Args:
        device: target of the load.
        estimate: of the engine.
        free: free bytes on the device; None if unknown.
        reserved: how many of them other loads have planned.
    """
    left = None if free is None else max(0, free - reserved)
    return LoadPlan(device, round(estimate.total * MARGIN), left, reserved)
