"""Memory and CPU limits of the control groups that hold this process, and of the machine.

Groups are found as the kernel names them (cgroups(7)): /proc/self/cgroup has the group's path in each hierarchy,
/proc/self/mountinfo has where the hierarchy is mounted. Both versions are read, also beside one another, and every
group from the process's own up to the mount point: the narrowest limit holds. Below a namespace or a bind mount the
path may lead outside of what is mounted; then the mount point is the process's own group.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.durable import read_bounded

_MAX_BYTES = 1 << 20  # of any of these files; mountinfo is long on machines with many containers
_KIB = 1024
_MIN_MOUNT_FIELDS = 10


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the machine, or of a group of processes with a limit; in bytes."""

    total: int
    used: int  # without page cache that can be reclaimed

    @property
    def free(self) -> int:
        """Bytes that can still be used."""
        return max(0, self.total - self.used)


@dataclass(frozen=True, slots=True)
class _Version:
    """File names and words of one version of control groups."""

    limits: tuple[str, ...]
    usage: str
    inactive_file: str
    cache: str  # shared memory included
    shared_memory: str
    mapped_file: str
    kills: str  # file with the row oom_kill


_V1 = _Version(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    inactive_file="total_inactive_file",
    cache="total_cache",
    shared_memory="total_shmem",
    mapped_file="total_mapped_file",
    kills="memory.oom_control",
)
_V2 = _Version(
    limits=("memory.max", "memory.high"),  # above `high` processes are slowed down until they hardly run
    usage="memory.current",
    inactive_file="inactive_file",
    cache="file",
    shared_memory="shmem",
    mapped_file="file_mapped",
    kills="memory.events",
)


def read_memory(root: Path = Path("/")) -> Memory | None:
    """The memory that this process has: of the fullest group that is smaller than the machine, else of the machine.

    Args:
        root: folder under which /proc and the hierarchies are read, for tests.

    Returns:
        None if it cannot be read.
    """
    machine = read_machine_memory(root)
    groups = [group for group in read_group_memory(root) if machine is None or group.total < machine.total]
    return min(groups, key=lambda group: group.free, default=machine)


def read_available_bytes(root: Path = Path("/")) -> int | None:
    """Free bytes of the machine and of every group of this process, the least of them; None if unknown."""
    machine = read_machine_memory(root)
    known = [memory.free for memory in (*read_group_memory(root), *([] if machine is None else [machine]))]
    return min(known, default=None)


def read_machine_memory(root: Path = Path("/")) -> Memory | None:
    """The memory of the machine; None if it cannot be read."""
    rows = _read_rows(root / "proc/meminfo")
    if "MemTotal:" not in rows or "MemAvailable:" not in rows:
        return None
    total = rows["MemTotal:"] * _KIB
    return Memory(total, total - rows["MemAvailable:"] * _KIB)


def read_group_memory(root: Path = Path("/")) -> list[Memory]:
    """The memory of every group of this process that has a limit, its own first."""
    found = []
    for version, folder, is_own in _memory_groups(root):
        rows = _read_rows(folder / "memory.stat")
        limits = [_read_number(folder / name) for name in version.limits]
        if is_own:  # of groups above the mount point, which cannot be seen; version 1 only
            limits.append(rows.get("hierarchical_memory_limit"))
        known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
        if known:
            found.append(Memory(min(known), read_usage(folder)))
    return found


def count_oom_kills(root: Path = Path("/")) -> int:
    """Processes of this process's own groups that the kernel has killed because memory ran out; 0 if unknown."""
    return sum(read_kills(folder) for _version, folder, is_own in _memory_groups(root) if is_own)


def read_kills(folder: Path) -> int:
    """Processes of one group that the kernel has killed because memory ran out; 0 if unknown."""
    return _read_rows(folder / _version_of(folder).kills).get("oom_kill", 0)


def read_usage(folder: Path) -> int:
    """Bytes that one group uses, without page cache that can be reclaimed; 0 if unknown."""
    version = _version_of(folder)
    usage = _read_number(folder / version.usage) or 0
    return max(0, usage - _reclaimable(_read_rows(folder / "memory.stat"), version))


def count_usable_cpus(root: Path = Path("/")) -> int:
    """Number of CPUs that affinity and the groups' quotas let this process use: whole ones, rounded up, at least 1."""
    quotas = [quota for folder, _ in find_groups("cpu", root) if (quota := _read_quota(folder)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


_NO_LIMIT = 1 << 62  # version 1 writes the largest number of pages


def _reclaimable(rows: dict[str, int], version: _Version) -> int:
    """Bytes of page cache that the kernel gives up before it kills a process.

    Cached pages that are in use: shared memory, and mapped files, such as the weights of models. A file that was read
    twice is on the active list although nothing maps it, therefore the inactive list alone is too little.
    """
    unmapped = rows.get(version.cache, 0) - rows.get(version.shared_memory, 0) - rows.get(version.mapped_file, 0)
    return max(0, unmapped, rows.get(version.inactive_file, 0))


def _memory_groups(root: Path) -> Iterator[tuple[_Version, Path, bool]]:
    """The groups of the memory controller: version, folder, and whether it is the process's own group."""
    for folder, is_own in find_groups("memory", root):
        yield _version_of(folder), folder, is_own


def _version_of(folder: Path) -> _Version:
    return _V1 if (folder / _V1.usage).exists() else _V2


def find_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Folders of the groups that hold this process, in version 1's hierarchy of a controller and in version 2's.

    Yields:
        The process's own group, then the ones that contain it, up to the mount point; and whether it is its own.
    """
    paths = _read_paths(controller, root)
    mounts = list(_read_mounts(controller, root))
    for is_v2, path in paths.items():
        inside = [(place, _below(path, shown)) for kind, shown, place in mounts if kind == is_v2]
        folders = [(place, place / below) for place, below in inside if below is not None and (place / below).is_dir()]
        folders += [(place, place) for place, _ in inside]  # the path leads outside of what is mounted
        for place, own in folders[:1]:
            levels = [own, *own.parents]
            for folder in levels[: levels.index(place) + 1]:
                yield folder, folder == own


def _read_paths(controller: str, root: Path) -> dict[bool, str]:
    """The process's group in the hierarchies of a controller: whether it is version 2 → path."""
    paths = {}
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") or line.startswith("0::"):
            paths[line.startswith("0::")] = path
    return paths


def _read_mounts(controller: str, root: Path) -> Iterator[tuple[bool, str, Path]]:
    """Whether a mounted hierarchy is version 2, the path of the group that is mounted, and where it is mounted."""
    for line in _read_text(root / "proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if len(fields) < _MIN_MOUNT_FIELDS or "-" not in fields:
            continue
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options):
            yield kind == "cgroup2", _unescape(fields[3]), root / _unescape(fields[4]).lstrip("/")


def _below(path: str, mounted: str) -> str | None:
    """The path relative to the mounted group; None if it leads elsewhere."""
    if ".." in path.split("/"):
        return None
    if path != mounted and not path.startswith(mounted.rstrip("/") + "/"):
        return None
    return path[len(mounted.rstrip("/")) :].lstrip("/")


def _unescape(text: str) -> str:
    r"""Blanks and backslashes in mountinfo are octal: `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _read_quota(folder: Path) -> int | None:
    """A group's CPUs, rounded up; None without a quota."""
    if (folder / "cpu.max").exists():
        words = _read_text(folder / "cpu.max").split()
    else:
        words = (_read_text(folder / "cpu.cfs_quota_us") + " " + _read_text(folder / "cpu.cfs_period_us")).split()
    if len(words) != 2 or not all(word.isdigit() for word in words):  # noqa: PLR2004  "max" or -1: none
        return None
    quota, period = map(int, words)
    return -(-quota // period) if quota and period else None


def _read_rows(path: Path) -> dict[str, int]:
    """The lines of a file that begin with a name and a number."""
    rows = (line.split()[:2] for line in _read_text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else None


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, _MAX_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
