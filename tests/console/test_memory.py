"""The memory of large answers goes back to the system."""

import subprocess
import sys

SCRIPT = """
import mmap
from console.memory import return_large_blocks

def read_resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE >> 20

return_large_blocks()
for _ in range(2):
    bytearray(24 << 20)  # freed at once: the default threshold grows
before, large, small = read_resident(), [], []
for _ in range(4):
    large.append(bytearray(b"x") * (24 << 20))
    small.append(bytearray(100_000))  # in the heap, above a large one that is there, too
large.clear()
print(read_resident() - before)
"""


def test_a_freed_large_block_is_returned_at_once() -> None:
    """Whatever lies above it in the heap; 96 MiB were freed here."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 24
