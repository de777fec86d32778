"""Devices and their free memory; torch is imported only for engines that use it."""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from common.cgroup import read_available_bytes
from inference.runner.engines.base import EngineLoader

_MEMORY_FILE = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Hardware(Protocol):
    """The devices that an engine can use."""

    def devices(self) -> list[tuple[str, str]]:
        """Names and default precisions, best first."""
        ...

    def memory_bytes(self, device: str) -> tuple[int, int]:
        """Used (by all processes) and total bytes; both 0 on a CPU. Device thread only."""
        ...

    def clear_cache(self) -> None:
        """Free cached device memory. Device thread only."""
        ...

    def use_threads(self, threads: int) -> None:
        """Set the number of CPU threads of later calls; 0 takes all usable CPUs. Device thread only."""
        ...


class CpuOnly:
    """Hardware of engines without device support."""

    def devices(self) -> list[tuple[str, str]]:
        """Return the CPU."""
        return [("cpu", "float32")]

    def memory_bytes(self, device: str) -> tuple[int, int]:  # noqa: ARG002  the port's signature
        """Return zeros."""
        return 0, 0

    def clear_cache(self) -> None:
        """Do nothing: there is no cache."""

    def use_threads(self, threads: int) -> None:
        """Do nothing: there are no compute threads."""


class TorchHardware:
    """Hardware of engines that use torch, which the first call imports."""

    def devices(self) -> list[tuple[str, str]]:
        """Return all GPUs, then the CPU."""
        from inference.runner import device  # noqa: PLC0415  imports torch

        return [(choice.name, choice.precision) for choice in device.list_devices()]

    def memory_bytes(self, device: str) -> tuple[int, int]:
        """Query the driver; creates the device's context if there is none."""
        from inference.runner.device import memory_bytes  # noqa: PLC0415  imports torch

        return memory_bytes(device)

    def clear_cache(self) -> None:
        """Empty torch's caching allocator."""
        torch = importlib.import_module("torch")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def use_threads(self, threads: int) -> None:
        """Set torch's intra-op threads."""
        from inference.runner.device import set_threads  # noqa: PLC0415  imports torch

        set_threads(threads)


def hardware_for(engine: str, extra: Mapping[str, str], loader: EngineLoader | None) -> Hardware:
    """Return the hardware of an engine; an extra engine may define `HARDWARE` in its module."""
    if not engine or loader is None:
        return CpuOnly()
    if engine not in extra:
        return TorchHardware()
    own: Hardware | None = getattr(sys.modules[loader.__module__], "HARDWARE", None)
    return own or CpuOnly()


def measure_free_bytes(hardware: Hardware, device: str) -> int | None:
    """Free bytes on a device; None if unknown. Device thread only."""
    if device == "cpu":
        return read_available_bytes()
    try:
        used, total = hardware.memory_bytes(device)
    except (RuntimeError, ValueError):  # no such card, or a driver error: the load itself reports it
        return None
    return max(0, total - used) if total else None


def measure_own_bytes(device: str) -> int:
    """Memory of a device that this process has taken: resident on a CPU, reserved by torch on a card."""
    if device == "cpu":
        return int(_MEMORY_FILE.read_bytes().split()[1]) * _PAGE_BYTES
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved(device))


def filter_devices(devices: list[tuple[str, str]], policy: str) -> list[tuple[str, str]]:
    """Return the devices that a policy ("auto", "cpu", "cuda", "cuda:N") permits. Pure."""
    if policy == "auto":
        return devices
    if policy == "cuda":
        return [row for row in devices if row[0].startswith("cuda:")]
    return [row for row in devices if row[0] == policy]
