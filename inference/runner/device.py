"""Devices of this machine as torch sees them, their default precision, and the number of CPU threads."""

from dataclasses import dataclass

import torch

from common.cgroup import count_usable_cpus

CPU = "cpu"
_BFLOAT16_CAPABILITY = 8  # least major CUDA compute capability
_CPU_BFLOAT16_CHECKS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


class DeviceUnknown(ValueError):
    """This machine has no such device, or no engine computes in this precision."""


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device that a model can be loaded on."""

    name: str  # "cpu" or "cuda:N"
    precision: str  # default: "float32" or "bfloat16"


def list_devices() -> tuple[DeviceChoice, ...]:
    """Return all devices of this machine, fastest first."""
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return tuple(DeviceChoice(name, default_precision(name)) for name in (*cards, CPU))


def default_precision(device: str) -> str:
    """Return the precision that a device computes in by default.

    bfloat16 where the device multiplies it in hardware, which halves memory and is several times as fast; elsewhere it
    is emulated and slower than float32.
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        multiplies = torch.cuda.get_device_capability(kind)[0] >= _BFLOAT16_CAPABILITY
    else:
        # Private functions of torch; `bool()` is False where one no longer exists.
        multiplies = any(getattr(torch.cpu, name, bool)() for name in _CPU_BFLOAT16_CHECKS)
    return "bfloat16" if multiplies else "float32"


def torch_dtype(precision: str) -> torch.dtype:
    """Return the dtype of a precision's name.

    Raises:
        DeviceUnknown: no engine computes in this precision.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in dtypes:
        raise DeviceUnknown(f"precision {precision!r} is unknown; supported: {', '.join(dtypes)}")
    return dtypes[precision]


def torch_device(device: str) -> torch.device:
    """Return the device of a name.

    Raises:
        DeviceUnknown: this machine has no such device.
    """
    names = [choice.name for choice in list_devices()]
    if device not in names:
        raise DeviceUnknown(f"device {device!r} does not exist; this machine has {', '.join(names)}")
    return torch.device(device)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of a device call; 0 takes all usable CPUs.

    Device thread only: OpenMP keeps the setting per thread.
    """
    torch.set_num_threads(threads or count_usable_cpus())


def memory_bytes(device: str) -> tuple[int, int]:
    """Used (by all processes) and total bytes of a card; both 0 for a CPU."""
    kind = torch.device(device)
    if kind.type != "cuda":
        return 0, 0
    free, total = torch.cuda.mem_get_info(kind)
    return total - free, total
