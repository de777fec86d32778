"""Pure: how a batch's items are packed into device calls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
