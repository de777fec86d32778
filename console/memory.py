"""How the console's process gives memory back."""

import ctypes

_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 1 << 20


def return_large_blocks() -> None:
    """Let the C library return blocks of LARGE_BYTES or more to the system as soon as they are freed.

    By default its threshold grows with what is freed, to 32 MiB, and what is freed below the end of the heap stays: of
    60 answers of 22 MiB, most of them dropped, 1 GiB stayed resident after the last one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # not glibc
    mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
