"""Pure: what to do when a device has no memory left."""

from collections.abc import Sequence

from inference.runner.calls import Cut

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
