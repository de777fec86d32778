"""What the machine has left: memory, disk, descriptors. Unreadable is 0, never an error."""

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Resources:
    """A look at the machine; bytes, or counts."""

    memory_used: int
    memory_total: int
    disk_free: int
    disk_total: int
    descriptors_used: int
    descriptors_limit: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Shares of a resource at which people should look, and at which it is too late."""

    name: str
    warn: float
    fail: float


MEMORY = Mark("memory", 0.80, 0.90)
GPU_MEMORY = Mark("GPU memory", 0.85, 0.95)
DISK = Mark("disk", 0.90, 0.98)
DESCRIPTORS = Mark("file descriptors", 0.80, 0.95)


def look(state_dir: Path) -> Resources:
    """Read what there is now."""
    used, total = _memory()
    try:
        disk = shutil.disk_usage(state_dir)
        free, size = disk.free, disk.total
    except OSError:
        free = size = 0
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Resources(used, total, free, size, _descriptors(), limit)


def over(mark: Mark, used: int, total: int) -> tuple[int, str]:
    """How bad a share is: 0 fine, 1 warn, 2 fail; with a sentence for people."""
    if total <= 0:
        return 0, ""
    share = used / total
    level = 2 if share >= mark.fail else 1 if share >= mark.warn else 0
    return level, f"{mark.name} {share:.0%} used, marks at {mark.warn:.0%} and {mark.fail:.0%}" if level else ""


def _memory() -> tuple[int, int]:
    """The container's limit where there is one, else the machine's."""
    fields = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * _KIB
    except (OSError, ValueError, IndexError):
        return 0, 0
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        current = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return total - available, total
    return (current, limit) if limit < total else (total - available, total)


def _descriptors() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return 0
