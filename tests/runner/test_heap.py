"""Memory that a device call frees stays in the heap for the next call."""

import mmap
import subprocess
import sys

BLOCK_BYTES = 64 << 20
PROGRAM = """
import ctypes, resource, threading
from inference.runner.process import keep_freed_memory

KEEP = {keep}
if KEEP:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
assert libc.prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE: with huge pages there would be a fault per 2 MiB
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
faults = []

def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc({block_bytes})
        ctypes.memset(block, 1, {block_bytes})
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults[-1])
"""


def _faults_of_a_later_call(*, keep: bool) -> int:
    program = PROGRAM.format(keep=keep, block_bytes=BLOCK_BYTES)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def test_later_calls_cause_no_page_faults() -> None:
    """A large block on another thread than the first causes page faults once, not in every call."""
    assert _faults_of_a_later_call(keep=False) > BLOCK_BYTES // mmap.PAGESIZE // 2
    assert _faults_of_a_later_call(keep=True) < 100
