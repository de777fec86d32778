"""What the runner itself asks of the devices; torch is met only behind an engine that has imported it."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from common.clock import Clock
from common.durable import read_bounded
from inference.runner.engines.base import EngineLoader
from inference.runner.plan import should_clear

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


SAMPLE_SECONDS = 1.0  # between two looks at a card's memory; each is a call of the driver


class Hardware(Protocol):
    """The devices, as an engine sees them."""

    def devices(self) -> list[tuple[str, str]]:
        """Names and default precisions, best first."""
        ...

    def memory_bytes(self, device: str) -> tuple[int, int]:
        """Memory in use by anybody, and in all; both 0 on a CPU. Device thread only."""
        ...

    def clear_cache(self) -> None:
        """Give memory back that is kept only to be quick. Device thread only."""
        ...

    def use_threads(self, threads: int) -> None:
        """Compute on so many threads of a CPU from now on; 0 takes all. Device thread only."""
        ...


class CpuOnly:
    """For engines that know no devices."""

    def devices(self) -> list[tuple[str, str]]:
        """The one that is always there."""
        return [("cpu", "float32")]

    def memory_bytes(self, device: str) -> tuple[int, int]:  # noqa: ARG002  the port's signature
        """Not measured."""
        return 0, 0

    def clear_cache(self) -> None:
        """Nothing is kept."""

    def use_threads(self, threads: int) -> None:
        """Nothing computes."""


class TorchHardware:
    """For engines that compute with torch; imported when the first question is asked."""

    def devices(self) -> list[tuple[str, str]]:
        """Cards, then the CPU."""
        from inference.runner import device  # noqa: PLC0415  brings torch

        return [(choice.name, choice.precision) for choice in device.devices()]

    def memory_bytes(self, device: str) -> tuple[int, int]:
        """As the driver says; creates the device's context if nothing has."""
        from inference.runner.device import memory_bytes  # noqa: PLC0415  brings torch

        return memory_bytes(device)

    def clear_cache(self) -> None:
        """Empty the caching allocator."""
        torch = importlib.import_module("torch")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def use_threads(self, threads: int) -> None:
        """Those of torch's own calls."""
        from inference.runner.device import set_threads  # noqa: PLC0415  brings torch

        set_threads(threads)


def hardware_for(engine: str, extra: Mapping[str, str], loader: EngineLoader | None) -> Hardware:
    """Choose by engine: an extra one may bring a `HARDWARE` of its own in its module."""
    if not engine or loader is None:
        return CpuOnly()
    if engine not in extra:
        return TorchHardware()
    own: Hardware | None = getattr(sys.modules[loader.__module__], "HARDWARE", None)
    return own or CpuOnly()


def free_bytes(hardware: Hardware, device: str) -> int | None:
    """What can still be taken on a device; None if nobody knows. Device thread only."""
    if device == "cpu":
        return available_bytes()
    try:
        used, total = hardware.memory_bytes(device)
    except (RuntimeError, ValueError):  # no such card, or a driver that will not say: the load itself will tell
        return None
    return max(0, total - used) if total else None


def allowed(devices: list[tuple[str, str]], policy: str) -> list[tuple[str, str]]:
    """Pure: those of the devices that a policy ("auto", "cpu", "cuda", "cuda:N") lets be used."""
    if policy == "auto":
        return devices
    if policy == "cuda":
        return [row for row in devices if row[0].startswith("cuda:")]
    return [row for row in devices if row[0] == policy]


class CardMemory:
    """Looks at a card's memory now and then, and gives back the cache before the card is full. Device thread only."""

    def __init__(self, hardware: Hardware, clock: Clock) -> None:
        self._hardware = hardware
        self._clock = clock
        self._looked_at = float("-inf")

    def look(self, device: str) -> tuple[int, int] | None:
        """Bytes in use and in all, if it is time to look; None if not, or on a CPU."""
        now = self._clock.monotonic()
        if not device.startswith("cuda") or now - self._looked_at < SAMPLE_SECONDS:
            return None
        self._looked_at = now
        used, total = self._hardware.memory_bytes(device)
        if should_clear(used, total):
            self._hardware.clear_cache()
            used, total = self._hardware.memory_bytes(device)
        return used, total
