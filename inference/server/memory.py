"""The memory of the server's own process: what is in use, and what the C library keeps although it is free."""

import contextlib
import ctypes
import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any, Protocol

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
ARENAS = 2  # heaps of all threads together
STRICT_LARGE_BYTES = 128 << 10  # blocks of at least this size are mapped, and unmapped when freed
LARGE_BYTES = 32 << 20  # the same while free memory may be kept; the largest value that every glibc accepts
TOP_BYTES = 1 << 20  # free bytes at the heap's end that are always kept
KEPT_BYTES = 8 << 20  # free bytes inside the heap that are kept while messages come, at least
REST_BYTES = 512 << 10  # the same while none comes
MAX_KEPT_BYTES = 64 << 20  # that are kept while large messages come: the next one needs them
KEPT_SHARE = 1 / 8  # of the limit of what is held for callers: a server with a low limit keeps nothing
END_BLOCK_BYTES = 96 << 10  # that is freed to trim the end of a heap: glibc looks at it from 64 KiB on
LARGE_MESSAGE_BYTES = 1 << 20  # whose pieces are worth giving back
CALM_TRIMS = 20  # calls of `trim` without a large message, or without any call, after which the server is at rest
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PATH = Path("/proc/self/statm")
_MAX_LINE = 256


def choose_kept_bytes(max_held_bytes: int) -> int:
    """Free bytes that are kept while large messages come, under a limit of what is held for callers. Pure."""
    return int(max(KEPT_BYTES, min(MAX_KEPT_BYTES, KEPT_SHARE * max_held_bytes)))


def set_heap_limits(max_held_bytes: int) -> bool:
    """Let the C library return freed memory to the system, but for what is kept. Call before any thread is started.

    By default its threshold for large blocks grows with what is freed, to 32 MiB, and what is freed below the end of
    the heap stays. Memory that is given back is cleared by the kernel when it is taken again: half of the CPU time of a
    call with a picture of 8 MB.

    The end of the heap that threads use is given back too, at rest, by a thread that is started here: see `HeapEnd`.

    Python's collector looks no more at what the imports have made: that takes 99 % of the time of a full collection.

    Returns:
        Whether the C library supports it (`mallopt`).
    """
    gc.freeze()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    kept = choose_kept_bytes(max_held_bytes)
    large, top = (LARGE_BYTES, kept) if kept > KEPT_BYTES else (STRICT_LARGE_BYTES, TOP_BYTES)
    is_limited = mallopt(_MMAP_THRESHOLD, large) and mallopt(_TRIM_THRESHOLD, top) and mallopt(_ARENA_MAX, ARENAS)
    if is_limited and not _ends:
        with contextlib.suppress(RuntimeError):  # no thread can be started: that end stays
            _ends.append(HeapEnd(top))
    return bool(is_limited)


class Heap(Protocol):
    """The memory of a process."""

    def read_resident(self) -> int:
        """Its resident memory."""
        ...

    def read_used(self) -> int:
        """Bytes in use in the heap, mapped blocks included."""
        ...

    def collect(self) -> None:
        """Free Python's objects that refer to each other and that nothing else refers to."""
        ...

    def give_back(self) -> None:
        """Return free memory to the system, as far as whole pages are free."""
        ...

    def give_back_end(self) -> None:
        """Soon also return the free end of the heap that threads use, which `give_back` leaves."""
        ...


class MemoryGauge:
    """Measures how much memory the process uses beyond a beginning. Without glibc: its resident memory."""

    def __init__(self, max_held_bytes: int = 0, heap: Heap | None = None) -> None:
        self._source = heap or ProcessHeap()
        self._max_kept = choose_kept_bytes(max_held_bytes)
        self._resident, self._heap = self._source.read_resident(), self._source.read_used()
        self._first_resident, self._first_heap = self._resident, self._heap
        self._kept = 0  # free bytes that could not be given back
        self._freed = 0  # bytes of large messages since it was last looked whether too much is kept
        self._calm_trims = self._idle_trims = 0
        self._held = (0, 0)  # calls and bytes of messages at the last `trim`
        self._failure: OSError | None = None  # of the last measurement
        self._next_rest = CALM_TRIMS  # of the idle trims

    def limit(self, max_held_bytes: int) -> None:
        """Follow another limit of what is held for callers; the C library's own thresholds stay as at the start."""
        self._max_kept = choose_kept_bytes(max_held_bytes)

    @property
    def _free_bytes(self) -> int:
        """Resident bytes that are not in use."""
        return (self._resident - self._first_resident) - (self._heap - self._first_heap)

    def read_growth(self) -> int:
        """Bytes in use beyond the beginning; free memory that the C library keeps does not count."""
        resident = self._read_resident()
        growth = self._heap - self._first_heap
        # What is freed inside the heap does not change the resident memory.
        if resident != self._resident or growth > KEPT_BYTES // 4:
            self._resident, self._heap = resident, self._source.read_used()
        # Allocated memory that was never written is not resident; free memory that the C library keeps is.
        return min(self._heap - self._first_heap, self._resident - self._first_resident)

    def trim(self, calls: int, message_bytes: int) -> bool:
        """Give free memory back to the system if there is much; returns whether it was tried. For each tick.

        Args:
            calls: that are open now.
            message_bytes: of their messages that are held now; what is computed for long is freed long after it came.
        """
        if (calls, message_bytes) != self._held:
            self._held, self._idle_trims = (calls, message_bytes), 0
        if self._idle_trims == 0:
            self._next_rest = CALM_TRIMS
        self._calm_trims += 1
        self._idle_trims += 1
        limit = self._max_kept if self._calm_trims < CALM_TRIMS else KEPT_BYTES
        if self._idle_trims % CALM_TRIMS == 0:  # while messages come, the next ones need it
            limit = REST_BYTES
            if self._idle_trims == self._next_rest:
                # What could not be given back amid messages may be free now, or a little later: again after twice as
                # long.
                self._next_rest *= 2
                self._source.collect()
                self._source.give_back_end()
                self._kept = 0
            self._measure()
        if self._free_bytes - self._kept < limit:
            self._kept = min(self._kept, max(0, self._free_bytes))
            return False
        self._give_back()
        self._kept = max(0, self._free_bytes)
        return True

    def count_freed(self, size_bytes: int) -> None:
        """The pieces of a message were freed: what is too much is given back at once; the next `trim` would be late."""
        self._idle_trims = 0
        if size_bytes < LARGE_MESSAGE_BYTES:
            return
        self._calm_trims = 0
        self._freed += size_bytes
        if self._freed < self._max_kept:
            return
        self._freed = 0
        self._measure()
        if self._max_kept <= KEPT_BYTES or self._free_bytes >= self._max_kept:
            self._give_back()

    def _give_back(self) -> None:
        self._source.give_back()
        self._measure()

    def _measure(self) -> None:
        self._resident, self._heap = self._read_resident(), self._source.read_used()

    def _read_resident(self) -> int:
        """What was read last, if it cannot be read now."""
        try:
            resident = self._source.read_resident()
        except OSError as error:
            self._failure = error
            return self._resident
        self._failure = None
        return resident

    def check(self) -> None:
        """Nothing, if the last measurement worked.

        Raises:
            OSError: the memory cannot be read; the gauge uses what was read before.
        """
        if self._failure is not None:
            raise self._failure


class ProcessHeap:
    """That of this process; without glibc all that is resident is in use."""

    def __init__(self) -> None:
        # Opened once: each tick reads it, also when the process has no descriptor left.
        self._file = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        library = ctypes.CDLL(None)
        self._trim: Any = getattr(library, "malloc_trim", None)
        self._info: Any = getattr(library, "mallinfo2", None)
        if self._info is not None:
            self._info.restype = _HeapInfo

    def read_resident(self) -> int:
        """See `Heap`."""
        return int(os.pread(self._file, _MAX_LINE, 0).split()[1]) * PAGE_BYTES

    def read_used(self) -> int:
        """See `Heap`."""
        if self._info is None:
            return self.read_resident()
        info = self._info()
        return int(info.uordblks + info.hblkhd)

    def collect(self) -> None:
        """See `Heap`."""
        gc.collect()

    def give_back(self) -> None:
        """See `Heap`."""
        if self._trim is not None:
            self._trim(0)

    def give_back_end(self) -> None:
        """See `Heap`."""
        for end in _ends:
            end.give_back()


class HeapEnd:
    """Gives back the free end of the heap that threads use: it may be as large as what is kept.

    `malloc_trim` gives back the end of the main thread's heap only. That of another one is given back when one of its
    threads frees a block; so a thread of it frees one, while the threshold is 0. The first thread that is started gets
    the second heap.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold  # of the C library, at other times
        self._wanted, self._has_heap = threading.Event(), threading.Event()
        threading.Thread(target=self._work, name="heap-end", daemon=True).start()
        self._has_heap.wait()

    def give_back(self) -> None:
        """Begin to give it back; the caller does not wait."""
        self._wanted.set()

    def _work(self) -> None:
        library = ctypes.CDLL(None)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        library.free.argtypes = (ctypes.c_void_p,)
        library.free(library.malloc(END_BLOCK_BYTES))
        self._has_heap.set()
        while True:
            self._wanted.wait()
            self._wanted.clear()
            library.mallopt(_TRIM_THRESHOLD, 0)
            library.free(library.malloc(END_BLOCK_BYTES))
            library.mallopt(_TRIM_THRESHOLD, self._threshold)


_ends: list[HeapEnd] = []  # of this process: one, after `set_heap_limits`
_HEAP_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in _HEAP_FIELDS.split()]
