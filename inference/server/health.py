"""Health data: the state of each service name, event-loop lag, and the machine's memory, disk and descriptors."""

import asyncio
import resource
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from common.cgroup import Memory, read_memory
from inference.server.events import Broadcast


class Overall(StrEnum):
    """How many of its models must be ready for a name that stands for several."""

    ALL = "all"
    ANY = "any"

    def combine(self, ready: Iterable[bool]) -> bool:
        """Whether a name is ready, from the readiness of its models; never without a model."""
        states = list(ready)
        return bool(states) and (all(states) if self is Overall.ALL else any(states))


class HealthRegistry:
    """The service names and their states; initially NOT_SERVING."""

    def __init__(self, names: list[str]) -> None:
        self._is_serving: dict[str, bool] = dict.fromkeys(names, False)
        self.changed = Broadcast()
        self.is_closed = False

    def update(self, states: Mapping[str, bool]) -> list[tuple[str, bool]]:
        """Set the names with their states, and notify the watchers of changes; other names are unknown from now on.

        Returns:
            The names whose state has changed; False for those that are gone.
        """
        changes = [(name, state) for name, state in states.items() if self._is_serving.get(name) != state]
        changes += [(name, False) for name in self._is_serving if name not in states]
        if changes:
            self._is_serving = dict(states)
            self.changed.notify()
        return changes

    def close(self) -> None:
        """Send the last state to all watchers and end their streams."""
        self.is_closed = True
        self.changed.notify()

    def is_serving(self, name: str) -> bool | None:
        """The state of a name; None if the name is not registered."""
        return self._is_serving.get(name)

    def snapshot(self) -> dict[str, bool]:
        """All names with their states."""
        return dict(self._is_serving)


class LoopLag:
    """Measures event-loop lag over the last minute, and counts the loop's tasks."""

    def __init__(self, now: Callable[[], float], interval_seconds: float = 0.25) -> None:
        self._now = now
        self._interval = interval_seconds
        self._samples: list[float] = []
        self.tasks = 0

    async def measure(self) -> None:
        """Measure once; takes the interval."""
        before = self._now()
        await asyncio.sleep(self._interval)
        self._samples.append(max(0.0, self._now() - before - self._interval))
        del self._samples[: -int(60 / self._interval)]
        self.tasks = len(asyncio.all_tasks())

    @property
    def worst_seconds(self) -> float:
        """The longest lag measured."""
        return max(self._samples, default=0.0)


@dataclass(frozen=True, slots=True)
class MachineResources:
    """Memory and disk in bytes, descriptors as counts; 0 for a value that cannot be read."""

    memory_used: int
    memory_total: int
    disk_free: int
    disk_total: int
    descriptors_used: int
    descriptors_limit: int


def read_resources(state_dir: Path) -> MachineResources:
    """Read the current values."""
    memory = read_memory() or Memory(0, 0)
    try:
        disk = shutil.disk_usage(state_dir)
        free, size = disk.free, disk.total
    except OSError:
        free = size = 0
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MachineResources(memory.used, memory.total, free, size, _descriptors(), limit)


def _descriptors() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return 0
