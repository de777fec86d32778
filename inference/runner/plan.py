"""Pure: whether a load will fit, before anything is allocated for it."""

from dataclasses import dataclass

from inference.runner.engines.base import MemoryNeed

MARGIN = 1.1  # times what the engine foretells: allocators round up, libraries keep workspaces
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What a load needs and what there is. Bytes."""

    device: str
    needed: int  # with the margin
    free: int | None  # None if it cannot be read

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it; what is not known refuses nothing."""
        return self.free is None or self.needed <= self.free

    @property
    def sentence(self) -> str:
        """Both numbers, for people."""
        free = "unknown" if self.free is None else f"{self.free / _MIB:.0f} MiB"
        return f"the model needs about {self.needed / _MIB:.0f} MiB on {self.device}, free are {free}"


def plan_load(device: str, need: MemoryNeed, free: int | None) -> LoadPlan:
    """Set a need against what is free.

    Args:
        device: where the load goes.
        need: as the engine foretells it.
        free: bytes that can still be taken there; None if nobody knows.
    """
    return LoadPlan(device, round(need.total * MARGIN), free)
