"""Which devices there are, what they compute in by default, and how many threads a CPU gets."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

CPU = "cpu"
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FIRST_WITH_BFLOAT16 = 8  # CUDA compute capability, major
_CPU_MULTIPLIES_BFLOAT16 = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


class DeviceUnknown(ValueError):
    """The device is no device of this machine, or the precision none that it computes in."""


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device that a model can be loaded on."""

    name: str  # "cpu" or "cuda:N"
    precision: str  # default: "float32" or "bfloat16"


def devices() -> tuple[DeviceChoice, ...]:
    """All devices of this machine, best first."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return tuple(DeviceChoice(name, default_precision(name)) for name in (*cards, CPU))


def default_precision(device: str) -> str:
    """What a device computes in unless somebody asks for something else.

    bfloat16 where the device multiplies in it, which halves the memory and is several times as fast; elsewhere it
    would be emulated, and float32 is faster.
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        multiplies = torch.cuda.get_device_capability(kind)[0] >= _FIRST_WITH_BFLOAT16
    else:
        # torch gives these no public name; one that has left says no.
        multiplies = any(getattr(torch.cpu, name, bool)() for name in _CPU_MULTIPLIES_BFLOAT16)
    return "bfloat16" if multiplies else "float32"


def torch_dtype(precision: str) -> torch.dtype:
    """The dtype of a precision's name.

    Raises:
        DeviceUnknown: no engine computes in it.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in dtypes:
        raise DeviceUnknown(f"precision {precision!r} is unknown; supported: {', '.join(dtypes)}")
    return dtypes[precision]


def torch_device(device: str) -> torch.device:
    """The device of a name.

    Raises:
        DeviceUnknown: this machine has no such device.
    """
    names = [choice.name for choice in devices()]
    if device not in names:
        raise DeviceUnknown(f"device {device!r} is not here; this machine has {', '.join(names)}")
    return torch.device(device)


def set_threads(threads: int) -> None:
    """Set how many threads one device call of a CPU uses; 0 takes all that this process may run on.

    Must be called on the thread that computes: OpenMP remembers it for each thread.
    """
    torch.set_num_threads(threads or usable_cpus())


def usable_cpus() -> int:
    """CPUs that this process may keep busy, at least 1: where it may run, and what its container is paid for."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota = cpus_of_quota(_CGROUP_QUOTA.read_text(encoding="ascii"))
    except (OSError, ValueError):
        quota = None  # no cgroup v2 here
    return max(1, min(allowed, quota or allowed))


def cpus_of_quota(text: str) -> int | None:
    """Whole CPUs, rounded up, of a cgroup's `cpu.max` ("microseconds period", or "max period"); None for no limit.

    Raises:
        ValueError: the text is nothing of the kind.
    """
    quota, period = text.split()
    return None if quota == "max" else -(-int(quota) // int(period))


def memory_bytes(device: str) -> tuple[int, int]:
    """Memory of a card in use by anybody, and in all; both 0 for a CPU."""
    kind = torch.device(device)
    if kind.type != "cuda":
        return 0, 0
    free, total = torch.cuda.mem_get_info(kind)
    return total - free, total
