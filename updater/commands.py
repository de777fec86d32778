"""What operators ask of one model, one at a time, from their threads to the model's own."""

import threading
from collections import deque
from dataclasses import dataclass, field

from common.errors import NotReady
from updater.core.effects import Wish, WishKind
from updater.core.record import Event, ModelRecord
from updater.stages.commands import Refusal, may_obey_now

_WRITE_SECONDS = 15.0  # what is being written down is written or refused by then
# An operator who takes back or stops does not wait for a transfer or a gate to end by itself.
URGENT = frozenset({WishKind.HOLD, WishKind.ROLLBACK})


@dataclass(frozen=True, slots=True)
class Granted:
    """What a wish led to: written down, or refused."""

    after: ModelRecord
    events: tuple[Event, ...]
    refusal: Refusal | None = None


@dataclass(slots=True, eq=False)
class _Waiting:
    wish: Wish
    answered: threading.Event = field(default_factory=threading.Event)
    granted: Granted | None = None
    is_taken: bool = False  # it is being written down


class Wishes:
    """A queue with one reader. From any thread."""

    def __init__(self, wake: threading.Event) -> None:
        """Start empty; `wake` is set when something has come."""
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()

    def ask(self, wish: Wish, seconds: float) -> Granted:
        """Ask, and wait until it is written down.

        Raises:
            NotReady: the model was busy for so long; it was not done, and will not be.
        """
        waiting = _Waiting(wish)
        with self._lock:
            self._queue.append(waiting)
        self._wake.set()
        waiting.answered.wait(seconds)
        with self._lock:
            if not waiting.is_taken and waiting in self._queue:
                self._queue.remove(waiting)
        if waiting.is_taken:
            waiting.answered.wait(_WRITE_SECONDS)
        if waiting.granted is None:
            message = "the updater is busy with a step that cannot be interrupted; ask again"
            raise NotReady(message, reason="UPDATER_BUSY", retry_after_seconds=seconds)
        return waiting.granted

    def oldest(self) -> Wish | None:
        """The wish to be obeyed next."""
        with self._lock:
            return self._queue[0].wish if self._queue else None

    def take(self, wish: Wish) -> bool:
        """Begin to obey one; False if whoever asked has given up."""
        with self._lock:
            for waiting in self._queue:
                if waiting.wish is wish:
                    waiting.is_taken = True
                    return True
        return False

    def is_urgent(self, record: ModelRecord) -> bool:
        """Whether one waits for which a step in progress should be broken off."""
        with self._lock:
            kinds = [waiting.wish for waiting in self._queue if waiting.wish.kind in URGENT]
        return any(may_obey_now(record, wish) for wish in kinds)

    def grant(self, wish: Wish, granted: Granted) -> None:
        """Answer whoever asked."""
        with self._lock:
            for waiting in self._queue:
                if waiting.wish is wish:
                    waiting.granted = granted
                    self._queue.remove(waiting)
                    waiting.answered.set()
                    return
