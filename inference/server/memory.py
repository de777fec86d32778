"""The memory of the server's own process: what is in use, and what the C library keeps although it is free."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
LARGE_BYTES = 128 << 10  # blocks of at least this size are mapped, and unmapped when freed
ARENAS = 2  # heaps of all threads together
KEPT_BYTES = 1 << 20  # free bytes at the heap's end that are kept
TRIM_BYTES = 8 << 20  # free bytes inside the heap that are given back
LARGE_MESSAGE_BYTES = 1 << 20  # whose pieces are worth giving back
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PATH = Path("/proc/self/statm")


def give_memory_back() -> bool:
    """Let the C library return freed memory to the system. Call before any thread is started.

    By default its threshold for large blocks grows with what is freed, to 32 MiB: then the memory of pictures stays.

    Returns:
        Whether the C library supports it (`mallopt`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    has_thresholds = mallopt(_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    return bool(has_thresholds and mallopt(_ARENA_MAX, ARENAS))


class MemoryGauge:
    """Measures how much memory the process uses beyond a beginning. Without glibc: its resident memory."""

    def __init__(self) -> None:
        self._read_heap = _find_heap_reader()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._resident = read_resident_bytes()
        self._heap = self._read_heap()
        self._first_resident, self._first_heap = self._resident, self._heap
        self._kept = 0  # free bytes that could not be given back
        self._freed = 0  # bytes of large messages since memory was last given back

    def read_growth(self) -> int:
        """Bytes in use beyond the beginning; free memory that the C library keeps does not count."""
        resident = read_resident_bytes()
        growth = self._heap - self._first_heap
        # What is freed inside the heap does not change the resident memory.
        if resident != self._resident or growth > TRIM_BYTES // 4:
            self._resident, self._heap = resident, self._read_heap()
        # Allocated memory that was never written is not resident; free memory that the C library keeps is.
        return min(self._heap - self._first_heap, self._resident - self._first_resident)

    def trim(self) -> bool:
        """Give free memory back to the system if there is much; returns whether it was tried."""
        kept = (self._resident - self._first_resident) - (self._heap - self._first_heap)
        if self._trim is None or kept - self._kept < TRIM_BYTES:
            self._kept = min(self._kept, max(0, kept))
            return False
        self.give_back()
        self._kept = max(0, (self._resident - self._first_resident) - (self._heap - self._first_heap))
        return True

    def count_freed(self, size_bytes: int) -> None:
        """The pieces of a message were freed: much of them is given back at once; the next `trim` would be late."""
        if size_bytes >= LARGE_MESSAGE_BYTES:
            self._freed += size_bytes
        if self._freed >= TRIM_BYTES:
            self._freed = 0
            self.give_back()

    def give_back(self) -> None:
        """Return free memory to the system."""
        if self._trim is not None:
            self._trim(0)
            self._resident, self._heap = read_resident_bytes(), self._read_heap()


def read_resident_bytes() -> int:
    """Resident memory of this process."""
    return int(_PATH.read_bytes().split()[1]) * PAGE_BYTES


_HEAP_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in _HEAP_FIELDS.split()]


def _find_heap_reader() -> Callable[[], int]:
    """A function that returns the bytes in use in the heap, mapped blocks included."""
    try:
        read = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return read_resident_bytes
    read.restype = _HeapInfo

    def read_heap() -> int:
        info = read()
        return int(info.uordblks + info.hblkhd)

    return read_heap
