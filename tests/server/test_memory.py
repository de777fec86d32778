"""Free memory is kept while large messages come, and given back at rest; a server with a low limit keeps none."""

import subprocess
import sys

import pytest

from inference.server.memory import CALM_TRIMS, KEPT_BYTES, MAX_KEPT_BYTES, MemoryGauge, choose_kept_bytes

MIB = 1 << 20
PICTURE = 8 * MIB


class SimHeap:
    """A heap whose free bytes stay resident until they are given back."""

    def __init__(self) -> None:
        self.resident = self.used = 50 * MIB
        self.times_given_back = 0
        self.torn = 0  # free bytes beside blocks in use, in pages that cannot be given back
        self.end = 0  # free bytes at the end of the heap of threads
        self.cyclic = 0  # bytes in use by objects that only a collection frees
        self.is_readable = True

    def read_resident(self) -> int:
        """As set."""
        if not self.is_readable:
            raise OSError(24, "Too many open files")
        return self.resident

    def read_used(self) -> int:
        """As set."""
        return self.used

    def collect(self) -> None:
        """Free what is in cycles."""
        self.used -= self.cyclic
        self.cyclic = 0

    def give_back(self) -> None:
        """All that is free and not torn."""
        self.times_given_back += 1
        self.resident = min(self.resident, self.used + self.torn + self.end)

    def give_back_end(self) -> None:
        """That of the heap of threads."""
        self.resident -= self.end
        self.end = 0

    def hold(self, size_bytes: int) -> None:
        """Take free memory first, then more."""
        self.used += size_bytes
        self.resident = max(self.resident, self.used)

    def free(self, size_bytes: int) -> None:
        """It stays resident."""
        self.used -= size_bytes


def play(gauge: MemoryGauge, heap: SimHeap, messages: int, at_once: int = 1) -> None:
    """Messages come and go, with a tick after each round."""
    for _ in range(messages // at_once):
        for _ in range(at_once):
            heap.hold(PICTURE)
        gauge.read_growth()
        for _ in range(at_once):
            heap.free(PICTURE)
            gauge.count_freed(PICTURE)
        gauge.read_growth()
        gauge.trim(0, 0)


@pytest.mark.parametrize(("limit", "kept"), [(64 * MIB, KEPT_BYTES), (256 * MIB, 32 * MIB), (1 << 40, MAX_KEPT_BYTES)])
def test_what_is_kept_follows_from_the_limit(limit: int, kept: int) -> None:
    """An eighth of it, within bounds."""
    assert choose_kept_bytes(limit) == kept


def test_memory_of_pictures_is_used_again() -> None:
    """Two callers with a picture of 8 MB each: nothing is given back that the next one would take again."""
    heap = SimHeap()
    play(MemoryGauge(1 << 40, heap), heap, 400, at_once=2)

    assert heap.times_given_back == 0
    assert heap.resident == 50 * MIB + 2 * PICTURE


def test_at_rest_it_is_given_back() -> None:
    """After a second of ticks without a large message; small ones do not count."""
    heap = SimHeap()
    gauge = MemoryGauge(1 << 40, heap)
    play(gauge, heap, 4, at_once=4)
    for _ in range(CALM_TRIMS):
        gauge.read_growth()
        gauge.count_freed(1000)
        gauge.trim(0, 0)

    assert heap.resident == 50 * MIB


def test_little_that_small_messages_leave_is_given_back_once_none_comes() -> None:
    """The next ones would take it again: while they come, it stays."""
    heap = SimHeap()
    gauge = MemoryGauge(1 << 40, heap)
    for _ in range(5 * CALM_TRIMS):
        heap.hold(3 * MIB)
        heap.free(3 * MIB)
        gauge.count_freed(100_000)
        gauge.read_growth()
        gauge.trim(0, 0)
    assert heap.resident == 53 * MIB

    for _ in range(CALM_TRIMS):
        gauge.trim(0, 0)
    assert heap.resident == 50 * MIB
    assert heap.times_given_back == 1


def test_what_could_not_be_given_back_amid_messages_is_given_back_at_rest() -> None:
    """Free memory between blocks that were in use then."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.torn = 9 * MIB
    heap.hold(20 * MIB)
    gauge.read_growth()
    heap.free(20 * MIB)
    gauge.count_freed(20 * MIB)
    gauge.read_growth()
    gauge.trim(0, 0)
    assert heap.resident == 59 * MIB

    heap.torn = 0
    for _ in range(CALM_TRIMS):
        gauge.trim(0, 0)
    assert heap.resident == 50 * MIB


def test_what_becomes_free_later_is_given_back_too() -> None:
    """A server at rest tries again, each time after twice the time."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.torn = 2 * MIB
    play(gauge, heap, 1)
    for _ in range(CALM_TRIMS):
        gauge.trim(0, 0)
    assert heap.resident == 52 * MIB

    heap.torn = 0
    for _ in range(CALM_TRIMS):
        gauge.trim(0, 0)
    assert heap.resident == 50 * MIB


def test_what_a_server_at_rest_frees_late_is_given_back_within_a_second() -> None:
    """For example when gRPC lets go of a buffer; beside what stays torn."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.torn = 2 * MIB
    heap.hold(20 * MIB)
    for _ in range(17 * CALM_TRIMS):
        gauge.trim(0, 0)
    heap.free(20 * MIB)
    for _ in range(CALM_TRIMS):
        gauge.trim(0, 0)

    assert heap.resident == 52 * MIB


def test_a_heap_that_stays_torn_is_looked_at_less_and_less() -> None:
    """After 1, 2, 4, 8, … seconds without a call."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.torn = 2 * MIB
    play(gauge, heap, 1)

    tried = [number for number in range(2, 1000) if gauge.trim(0, 0)]

    assert [number // CALM_TRIMS for number in tried] == [1, 2, 4, 8, 16, 32]


def test_calls_that_end_without_a_message_are_followed_by_a_rest() -> None:
    """Thousands of idle streams that are ended leave memory, part of it in cycles of objects."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.hold(4 * MIB)
    for _ in range(10 * CALM_TRIMS):
        gauge.trim(3000, 0)
    assert heap.resident == 54 * MIB

    heap.free(3 * MIB)
    heap.cyclic = MIB
    for _ in range(CALM_TRIMS):
        gauge.trim(0, 0)
    assert heap.resident == 50 * MIB


def test_a_message_that_is_answered_long_after_it_came_is_followed_by_a_rest() -> None:
    """The call stays open: a stream whose other items were answered before."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.hold(6 * MIB)
    for _ in range(9 * CALM_TRIMS):
        gauge.trim(1, 6 * MIB)

    heap.free(6 * MIB)
    for _ in range(CALM_TRIMS):
        gauge.trim(1, 0)
    assert heap.resident == 50 * MIB


def test_more_than_may_be_kept_is_given_back_at_once() -> None:
    """A burst of 20 pictures leaves no more than that; what is in use is no growth that callers are charged for."""
    heap = SimHeap()
    gauge = MemoryGauge(1 << 40, heap)
    play(gauge, heap, 20, at_once=20)

    assert heap.times_given_back >= 1
    assert heap.resident - 50 * MIB <= MAX_KEPT_BYTES
    assert gauge.read_growth() == 0


def test_a_lower_limit_counts_at_once() -> None:
    """A reload of the settings changes what may lie free."""
    heap = SimHeap()
    gauge = MemoryGauge(1 << 40, heap)
    gauge.limit(64 * MIB)
    play(gauge, heap, 20, at_once=20)

    low = SimHeap()
    play(MemoryGauge(64 * MIB, low), low, 20, at_once=20)
    assert heap.resident == low.resident
    assert heap.resident < 50 * MIB + 2 * PICTURE


def test_under_a_low_limit_each_large_message_is_given_back() -> None:
    """As much as one picture may lie free."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    play(gauge, heap, 10)

    assert heap.times_given_back == 10


@pytest.mark.parametrize(("messages", "given_back"), [(3, 0), (4, 1), (7, 1), (8, 2)])
def test_what_large_messages_leave_is_looked_at_each_time_they_could_exceed_it(messages: int, given_back: int) -> None:
    """At 32 MiB that may be kept, at every fourth picture; between two ticks, where `trim` would be late."""
    heap = SimHeap()
    gauge = MemoryGauge(256 * MIB, heap)
    for _ in range(messages):
        heap.hold(4 * PICTURE)
        heap.free(4 * PICTURE)
        gauge.count_freed(PICTURE)

    assert heap.times_given_back == given_back


def test_little_that_large_messages_leave_is_kept_for_the_next_one() -> None:
    """They are looked at, and nothing is given back."""
    heap = SimHeap()
    gauge = MemoryGauge(256 * MIB, heap)
    for _ in range(8):
        heap.hold(PICTURE)
        heap.free(PICTURE)
        gauge.count_freed(PICTURE)

    assert heap.times_given_back == 0


def test_a_tick_tells_whether_it_gave_memory_back() -> None:
    """Beyond what is kept while messages come, and at rest."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.hold(2 * PICTURE)
    gauge.read_growth()
    heap.free(2 * PICTURE)
    gauge.count_freed(1000)
    gauge.read_growth()
    assert [gauge.trim(0, 0) for _ in range(2)] == [True, False]

    heap.hold(MIB)
    heap.free(MIB)
    assert [gauge.trim(0, 0) for _ in range(CALM_TRIMS - 2)] == [False] * (CALM_TRIMS - 3) + [True]


def test_the_end_of_the_heap_of_threads_is_given_back_at_rest() -> None:
    """While messages come it stays: the next ones need it."""
    heap = SimHeap()
    gauge = MemoryGauge(1 << 40, heap)
    play(gauge, heap, 4, at_once=4)
    heap.end = PICTURE
    gauge.trim(1, 0)
    assert heap.end == PICTURE

    for _ in range(CALM_TRIMS):
        gauge.trim(1, 0)
    assert heap.resident == 50 * MIB


THREADS = """
import threading, time
from inference.server.memory import ProcessHeap, set_heap_limits
assert set_heap_limits(1 << 30)
heap, done = ProcessHeap(), threading.Event()
def work():
    blocks = [b"x" * (100_000 + number) for number in range(400)]
    del blocks
    done.set()
    time.sleep(60)
start = heap.read_resident()
for _ in range(2):  # one of them uses the heap that is not the main thread's
    threading.Thread(target=work, daemon=True).start()
    done.wait()
    done.clear()
heap.give_back()
assert heap.read_resident() - start > 15_000_000
heap.give_back_end()
until = time.monotonic() + 20
while heap.read_resident() - start > 3_000_000:
    assert time.monotonic() < until, heap.read_resident() - start
    time.sleep(0.001)
"""


def test_the_end_of_the_heap_of_threads_is_given_back_to_the_system() -> None:
    """`malloc_trim` leaves it."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")


REAL = """
import gc
from inference.server.memory import ProcessHeap, set_heap_limits
class Node: pass
assert set_heap_limits(64 << 20)
assert gc.get_freeze_count() > 1000
heap = ProcessHeap()
first, start = heap.read_used(), heap.read_resident()
blocks = [bytes(100_000) for _ in range(400)]
assert heap.read_used() - first > 39_000_000
pins = blocks[::40]
node = Node(); node.itself, node.blocks = node, blocks
del blocks, node
assert heap.read_used() - first > 39_000_000
heap.collect()
assert heap.read_used() - first < 5_000_000
heap.give_back()
assert heap.read_resident() - start < 8_000_000
"""


def test_the_heap_of_the_process_is_collected_and_given_back() -> None:
    """Blocks that are free between others, and blocks that only a cycle of objects refers to."""
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_that_cannot_be_read_is_taken_as_it_was() -> None:
    """The gauge goes on with what it knew, says so when it is asked, and measures again when it can."""
    heap = SimHeap()
    gauge = MemoryGauge(64 * MIB, heap)
    heap.hold(PICTURE)
    heap.is_readable = False
    grown = gauge.read_growth()
    with pytest.raises(OSError, match="Too many open files"):
        gauge.check()
    for _ in range(3 * CALM_TRIMS):
        gauge.trim(0, 0)

    heap.is_readable = True
    assert (grown, gauge.read_growth()) == (0, PICTURE)
    gauge.check()


def test_the_memory_is_read_without_a_free_descriptor() -> None:
    """Its file is opened once: a process that has used up its descriptors still knows how much memory it uses."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_DESCRIPTORS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


WITHOUT_DESCRIPTORS = """
import contextlib, os, resource
from inference.server.connections import TcpConnections
from inference.server.memory import MemoryGauge
gauge, connections = MemoryGauge(64 << 20), TcpConnections()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with contextlib.suppress(OSError):
    while True:
        os.dup(0)
print(gauge.read_growth() >= 0)
gauge.trim(0, 0)
gauge.check()
connections.look([], most=10, closes_large=True)
try:
    connections.check()
except OSError as error:
    print("Too many open files" in str(error))
"""
