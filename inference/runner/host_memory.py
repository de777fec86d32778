"""What the host can still give: the machine's own estimate, within what its container is allowed."""

from pathlib import Path

from common.durable import read_bounded

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
_MAX_BYTES = 1 << 16  # of any of these files
_KIB = 1024


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can be taken without swapping; page cache counts as free. None if the system does not say."""
    machine = _number(meminfo, "MemAvailable:", _KIB)
    left = container_left(_text(cgroup / "memory.max"), _text(cgroup / "memory.current"), _text(cgroup / "memory.stat"))
    known = [value for value in (machine, left) if value is not None]
    return min(known, default=None)


def container_left(limit: str, current: str, stat: str) -> int | None:
    """Pure: what a container may still take, by its cgroup's files; None without a limit, or if they say nothing.

    The kernel counts page cache as the container's and gives it back when memory is short: it must not be
    taken for use. Shared memory is in the same number and stays.
    """
    try:
        allowed, used = int(limit), int(current)
    except ValueError:  # "max", or not there
        return None
    rows = dict(row for line in stat.splitlines() if len(row := line.split()) == 2)  # noqa: PLR2004  name and value
    try:
        cache = int(rows.get("file", "0")) - int(rows.get("shmem", "0"))
    except ValueError:
        cache = 0
    return max(0, allowed - used + max(0, cache))


def _number(path: Path, name: str, unit: int) -> int | None:
    for line in _text(path).splitlines():
        words = line.split()
        if words[:1] == [name] and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * unit
    return None


def _text(path: Path) -> str:
    try:
        return read_bounded(path, _MAX_BYTES).decode("ascii", errors="replace")
    except (OSError, ValueError):
        return ""
