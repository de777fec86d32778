"""A bundle in a slot, from the wish to its end."""

from dataclasses import dataclass, field
from pathlib import Path

from common.bundle import Bundle
from common.errors import HotslotError
from inference.server.events import Broadcast
from inference.server.model.stats import StatsKey
from inference.server.request import ServedBy


@dataclass(slots=True, eq=False)
class Load:
    """What a slot holds or is about to hold."""

    load_id: str
    bundle: Bundle
    folder: Path
    device: str  # "auto" until the runner has said what there is
    transaction_id: str
    begun_at: float
    is_loaded: bool = False
    phase: str = "starting"  # "starting", "reading", "warming_up", "loaded"
    fraction: float = 0.0
    precision: str = ""
    load_seconds: float = 0.0
    failure: HotslotError | None = None
    is_proven: bool = False  # has answered since it was loaded, and its last self-test was good
    loaded_at: float = 0.0
    leases: int = 0
    fall_back_to: str = ""  # device of the next process, because memory ran out on this one's
    changed: Broadcast = field(default_factory=Broadcast)

    @property
    def key(self) -> StatsKey:
        """Under what its numbers are counted."""
        return StatsKey(self.bundle.bundle_digest, self.device)

    def served_by(self, model: str, slot: str, node: str) -> ServedBy:
        """What its answers are signed with."""
        return ServedBy(model, self.bundle.revision, self.bundle.bundle_digest, self.device, slot, node)

    @property
    def place(self) -> str:
        """Names the load where it is: by which a request knows who ran out of memory on it."""
        return f"{self.load_id} on {self.device}"

    def restart(self, now: float) -> None:
        """Its process ended: it is loaded once more, elsewhere if it did not fit."""
        if self.fall_back_to:
            self.device, self.fall_back_to = self.fall_back_to, ""
        self.is_loaded = self.is_proven = False
        self.phase, self.fraction, self.begun_at = "starting", 0.0, now
        self.leases = 0
        self.changed.notify()
