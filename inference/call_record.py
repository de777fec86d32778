"""The items of the running device call, in memory that outlives the runner: the server reads it afterwards."""

import mmap
import os
import struct
from collections.abc import Sequence

MAX_ITEMS = 4096  # of a device call; further ones are left out
_COUNT = struct.Struct("=Q")
SIZE_BYTES = _COUNT.size * (1 + MAX_ITEMS)


def create_memory() -> int:
    """Create the memory, and return its descriptor, which the caller closes.

    Raises:
        OSError: no descriptor is left.
    """
    descriptor = os.memfd_create("hotslot-device-call")
    os.ftruncate(descriptor, SIZE_BYTES)
    return descriptor


class CallRecord:
    """The ids of the items in the running device call. The runner writes, at a cost of some microseconds a call.

    Args:
        descriptor: of the memory; may be closed afterwards.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SIZE_BYTES)

    def write(self, item_ids: Sequence[int]) -> None:
        """Record a call that begins; none for the end of one."""
        ids = item_ids[:MAX_ITEMS]
        _COUNT.pack_into(self._memory, 0, 0)  # what follows is not valid until its count is
        struct.pack_into(f"={len(ids)}Q", self._memory, _COUNT.size, *ids)
        _COUNT.pack_into(self._memory, 0, len(ids))

    def read(self) -> tuple[int, ...]:
        """The items of the call that ran when the runner ended; empty if none did, or if the memory is damaged."""
        (count,) = _COUNT.unpack_from(self._memory, 0)
        return struct.unpack_from(f"={count}Q", self._memory, _COUNT.size) if count <= MAX_ITEMS else ()

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
