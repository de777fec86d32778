"""Pure: whether a load will fit, before anything is allocated for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inference.runner.engines.base import MemoryNeed


@dataclass(frozen=True, slots=True)
class Cut:
    """Some consecutive rows of one item."""

    item: int  # its place in the batch
    start: int  # first row
    stop: int  # row after the last

    @property
    def rows(self) -> int:
        """Device rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What bounds one device call."""

    max_rows: int  # at least 1
    max_seconds: float  # expected; 0 for no bound


def rows_allowed(limits: CallLimits, row_seconds: float, memory_rows: int | None) -> int:
    """How many rows the next call may carry.

    Args:
        limits: what the server and the engine allow.
        row_seconds: measured cost of one row; 0 if it is not known.
        memory_rows: what memory was seen to allow; None if it never ran out.

    Returns:
        At least 1: a row that alone takes longer than the bound must still be computed.
    """
    allowed = limits.max_rows if memory_rows is None else min(limits.max_rows, memory_rows)
    if limits.max_seconds > 0 and row_seconds > 0:
        allowed = min(allowed, math.floor(limits.max_seconds / row_seconds))
    return max(1, allowed)


def next_call(waiting: Sequence[Cut], max_rows: int) -> tuple[Cut, ...]:
    """Take the next call from what is left of a batch, in order.

    An item that fits into one call is not cut: what its rows share (a picture) would be computed
    twice. A larger one is cut, and fills the room that is left.

    Args:
        waiting: what is left of each item, none of them empty.
        max_rows: at least 1.
    """
    call: list[Cut] = []
    room = max_rows
    for cut in waiting:
        if cut.rows <= room:
            call.append(cut)
            room -= cut.rows
            continue
        if cut.rows > max_rows and room:
            call.append(Cut(cut.item, cut.start, cut.start + room))
        break
    return tuple(call)


def by_item(call: Sequence[Cut]) -> list[tuple[Cut, ...]]:
    """The same work with every item in a call of its own, so that one that breaks the engine meets nobody else."""
    return [(cut,) for cut in call]


CLEAR_ABOVE = 0.9  # share of the card in use, by anybody, above which cached memory is given back
_MEMORY_WORDS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
GOOD_CALLS_TO_GROW = 64  # at the learned limit, before twice as much is tried again


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, told by name so that no device library is imported."""
    if isinstance(error, MemoryError):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    # Those that the libraries below raise as plain errors: a CPU's allocator, the driver, cuBLAS.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the device's context is broken, so that every later call would fail too."""
    if is_out_of_memory(error):
        return False
    if any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


def halve(call: Sequence[Cut]) -> list[tuple[Cut, ...]]:
    """Split a call that did not fit into two of half the rows; empty if it is a single row and cannot be split."""
    half = sum(cut.rows for cut in call) // 2
    if half == 0:
        return []
    left: list[Cut] = []
    right: list[Cut] = []
    for cut in call:
        taken = min(cut.rows, half - sum(part.rows for part in left))
        if taken:
            left.append(Cut(cut.item, cut.start, cut.start + taken))
        if taken < cut.rows:
            right.append(Cut(cut.item, cut.start + taken, cut.stop))
    return [tuple(left), tuple(right)]


class MemoryLimit:
    """How many rows memory was seen to allow: halved when it runs out, tried again after a good while."""

    def __init__(self) -> None:
        self.rows: int | None = None  # None: it never ran out, or all is well again
        self._good = 0

    def is_over(self, rows: int) -> bool:
        """Whether a call of so many rows was seen not to fit."""
        return self.rows is not None and rows > self.rows

    def ran_out(self, rows: int) -> None:
        """A call of so many rows did not fit."""
        self.rows = max(1, rows // 2)
        self._good = 0

    def fitted(self, rows: int, max_rows: int) -> None:
        """A call of so many rows did fit; `max_rows` is what would be packed without this limit."""
        if self.rows is None or rows < self.rows:
            return
        self._good += 1
        if self._good >= GOOD_CALLS_TO_GROW:
            self._good = 0
            self.rows = self.rows * 2 if self.rows * 2 < max_rows else None


def should_clear(used_bytes: int, total_bytes: int) -> bool:
    """Whether a card is so full that cached memory should be given back before it runs out."""
    return total_bytes > 0 and used_bytes > CLEAR_ABOVE * total_bytes


MARGIN = 1.1  # times what the engine foretells: allocators round up, libraries keep workspaces
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a load needs and what there is. Bytes."""

    device: str
    needed: int  # with the margin
    free: int | None  # None if it cannot be read

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it; what is not known refuses nothing."""
        return self.free is None or self.needed <= self.free

    @property
    def sentence(self) -> str:
        """Both numbers, for people."""
        free = "unknown" if self.free is None else f"{self.free / _MIB:.0f} MiB"
        return f"the model needs about {self.needed / _MIB:.0f} MiB on {self.device}, free are {free}"


def plan_load(device: str, need: MemoryNeed, free: int | None) -> LoadPlan:
    """Set a need against what is free.

    Args:
        device: where the load goes.
        need: as the engine foretells it.
        free: bytes that can still be taken there; None if nobody knows.
    """
    return LoadPlan(device, round(need.total * MARGIN), free)
