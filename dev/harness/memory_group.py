"""A control group of limited memory for processes under test; needs root and a writable hierarchy."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import cgroup

ROOT = Path("/sys/fs/cgroup")
NO_LIMIT = -1
_GONE_SECONDS = 5.0  # for the kernel to notice that the group's processes have ended


class NoMemoryGroup(Exception):
    """This machine lets no group be made; the message says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One group; either version."""

    folder: Path
    is_v1: bool

    def limit(self, size: int) -> None:
        """Set the limit in bytes; `NO_LIMIT` removes it."""
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        text = "max" if size == NO_LIMIT and not self.is_v1 else str(size)
        (self.folder / name).write_text(text)

    def wrap(self, command: Sequence[str]) -> list[str]:
        """A command that runs another one in the group."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    @property
    def used(self) -> int:
        """Bytes in use, without page cache that can be reclaimed."""
        return cgroup.read_usage(self.folder)

    @property
    def kills(self) -> int:
        """Processes that the kernel killed because the group's memory ran out."""
        return cgroup.read_kills(self.folder)

    def pids(self) -> list[int]:
        """Processes in the group."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]


@contextlib.contextmanager
def memory_group(name: str = "hotslot") -> Iterator[MemoryGroup]:
    """A new group without a limit; removed at the end, when its processes have ended.

    Raises:
        NoMemoryGroup: there is no permission, or no memory controller.
    """
    is_v1 = (ROOT / "memory/memory.usage_in_bytes").exists()
    folder = (ROOT / "memory" if is_v1 else ROOT) / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise NoMemoryGroup(f"{folder} cannot be made: {error.strerror}") from error
    try:
        if not (folder / ("memory.usage_in_bytes" if is_v1 else "memory.current")).exists():
            raise NoMemoryGroup("the memory controller is not available here")
        yield MemoryGroup(folder, is_v1)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    ends = time.monotonic() + _GONE_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)
        else:
            return
