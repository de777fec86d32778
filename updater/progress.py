"""How far what takes long has come, for whoever looks. Not durable: it says nothing that a decision needs."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole, in bytes."""

    done_bytes: int = 0
    total_bytes: int = 0  # 0: nothing is under way, or nobody knows how much it is

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


class Progress:
    """One model's step in progress. Told by its own thread, read by any."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._lock = threading.Lock()
        self._share = Share()

    @property
    def share(self) -> Share:
        """How far it is now."""
        with self._lock:
            return self._share

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        """Say how far it is."""
        with self._lock:
            self._share = Share(done_bytes, total_bytes)

    def clear(self) -> None:
        """It is over, one way or another."""
        self.tell(0, 0)
