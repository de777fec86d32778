"""How the C library keeps memory that a call has freed, so that the next call finds it ready."""

import ctypes

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
KEPT_BYTES = 512 << 20  # free at the heap's end, before it is given back: more than a large model's call takes
LARGE_BYTES = 128 << 20  # a block of this size is asked of the system, and given back at once
_LARGE_BYTES_OF_OLD = 32 << 20  # what every glibc takes


def keep_freed_memory() -> bool:
    """Let a device call's blocks stay in the heap; before any thread is started.

    By default blocks above some 30 MB, and heaps of threads, are given back after every call and their
    pages cleared by the kernel when the next one touches them: a fifth of a large model's time in
    bfloat16 was seen to go there.

    Returns:
        Whether the C library has such a switch; without it all works as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    large = mallopt(_MMAP_THRESHOLD, LARGE_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGE_BYTES_OF_OLD)
    # One heap for all threads: those of other threads are 64 MB at most.
    return bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES) and large and mallopt(_ARENA_MAX, 1))
