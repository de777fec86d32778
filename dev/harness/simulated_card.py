"""The memory of a simulated GPU: which loads and items fit into it."""

from collections.abc import Sequence
from dataclasses import dataclass

from updater.core.effects import EffectFailure, FailureKind, Shortage

GIB = 1 << 30
CPU, CARD = "cpu", "cuda:0"


@dataclass(frozen=True, slots=True)
class Held:
    """The load of a slot."""

    load_id: str
    bundle_digest: str
    state: str = "LOADED"
    device: str = CPU


@dataclass(slots=True)
class Card:
    """The memory of a device."""

    total: int = 10 * GIB
    strangers: int = 0  # used by other processes
    weights: int = 3 * GIB  # of any bundle
    working: int = 2 * GIB  # that one item needs
    plan: str = "honest"  # "kind" forgets what items need; "blind" cannot be made, so that a load tries it

    def free_bytes(self, slots: Sequence[Held | None]) -> int:
        """Beside the loads of a server's slots."""
        loads = sum(held is not None and held.device == CARD for held in slots)
        return self.total - self.strangers - self.weights * loads

    def shortage(self, bundle_digest: str, slots: Sequence[Held | None]) -> EffectFailure | None:
        """The failure of a load of a bundle beside those of the slots, or of its items; None if they fit."""
        is_there = any(
            held is not None and (held.bundle_digest, held.device) == (bundle_digest, CARD) for held in slots
        )
        free = self.free_bytes(slots) + (self.weights if is_there else 0)
        needed = self.weights + (0 if self.plan == "kind" else self.working)
        if needed <= free:
            return None
        reason = "OUT_OF_MEMORY" if self.plan == "blind" else "DOES_NOT_FIT"
        lacks = Shortage(CARD) if self.plan == "blind" else Shortage(CARD, needed, free)
        return EffectFailure(FailureKind.PERMANENT, reason, "it does not fit", shortage=lacks)
