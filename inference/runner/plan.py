"""Pure decisions about the device: a call's rows and its wait for more, what an error means, whether a load fits."""

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
    if rows >= sum(part.rows for part in _fill_call(waiting, max_rows, -math.inf, expected_seconds)):
        return call  # no deadline makes it small, but that the next item does not fit
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


GAIN_MARGIN = 1.1  # by which the gain must exceed the wait
MIN_RETURNED = 0.7  # of the rows that a call has answered, as many as must have come back, on average
OBSERVED_OVERHEADS = 2.0  # how long after a call returning rows are observed, in overheads of a call
_SMOOTHING = 0.1  # weight of the newest observation


@dataclass(slots=True)
class _Epoch:
    """The time since a device call has ended."""

    freed_at: float = 0.0  # clock.monotonic()
    answered: int = 0  # rows of the call; 0: none was observed
    ready: int = 0  # rows that were there when it ended
    arrived: int = 0  # rows since, within the time that is observed
    first_rows: int = 0  # that arrived first
    first: float = 0.0  # seconds until these
    last: float = 0.0  # until the last one

    def add(self, ready_at: float, rows: int, seconds: float) -> None:
        """Record rows that were ready at a time, if that is in the first seconds after the call."""
        after = ready_at - self.freed_at
        if 0 < after <= seconds:
            if not self.arrived:
                self.first, self.first_rows = after, rows
            self.last = max(self.last, after)
            self.arrived += rows


class Gathering:
    """Whether, and how long, the device waits for further rows. Device thread only.

    Callers in a closed loop ask again as soon as they are answered. If their rows fill fewer than two device calls,
    they split into two groups computed in turn, and each cycle pays the overhead of two calls. A device that waits
    until the rows of its last call are back computes all in one. That pays if they are back in less than what is saved.
    Where callers ask whenever they want, rows do not come back in this time, and the device never waits. Nor does it
    while another model has rows to compute on it: it would get the device meanwhile, and the calls measured here
    include the time that they spent waiting for it, which looks like an overhead.
    """

    def __init__(self) -> None:
        self.is_device_contended = False  # another model has rows to compute on the device
        self._epoch = _Epoch()
        self._before = _Epoch()  # rows that were ready during the call that ended it are told after that call
        self._returned = 0.0  # means: share of the answered rows that were back in time
        self._first_seconds = 0.0  # from the end of a call until the first row is back
        self._row_seconds = 0.0  # between two rows

    def end_call(self, now: float, rows: int, ready: int) -> None:
        """Record that a call of `rows` rows has ended, and that `ready` further rows are there."""
        self._learn()
        self._before, self._epoch = self._epoch, _Epoch(now, rows, ready)

    def add(self, ready_at: float, rows: int, cost: CallCost) -> None:
        """Record rows that were ready at a time."""
        is_new = ready_at > self._epoch.freed_at
        (self._epoch if is_new else self._before).add(ready_at, rows, OBSERVED_OVERHEADS * cost.overhead_seconds)
        if not is_new:
            self._epoch.ready += rows

    def choose_wait(self, now: float, rows: int, call_rows: int, cost: CallCost) -> float:
        """Seconds for which the next call waits for further rows; not above 0 if it should begin.

        Args:
            now: clock.monotonic().
            rows: that are there.
            call_rows: most rows of a call.
            cost: of a call, measured.
        """
        self._learn()
        if self.is_device_contended:
            return 0.0
        epoch = self._epoch
        callers = epoch.ready + epoch.answered  # rows that are computed again and again
        target = min(callers, call_rows)
        if not epoch.answered or rows >= target or self._returned < MIN_RETURNED:
            return 0.0
        # Without a wait two calls compute these rows; with one, the overhead of a call is shared by `target` rows.
        longest = cost.overhead_seconds * (2 * target / callers / GAIN_MARGIN - 1)
        expected = self._first_seconds + (2 * target - callers - 1) * self._row_seconds
        return epoch.freed_at + longest - now if expected < longest else 0.0

    def _learn(self) -> None:
        epoch, self._before = self._before, _Epoch()
        if not epoch.answered:
            return
        self._returned += _SMOOTHING * (min(1.0, epoch.arrived / epoch.answered) - self._returned)
        if not epoch.arrived:
            return
        self._first_seconds += _SMOOTHING * (epoch.first - self._first_seconds)
        if epoch.arrived > epoch.first_rows:
            row_seconds = (epoch.last - epoch.first) / (epoch.arrived - epoch.first_rows)
            self._row_seconds += _SMOOTHING * (row_seconds - self._row_seconds)
