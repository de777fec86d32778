"""What operators ask of one model, one at a time, from their threads to the model's own."""

import threading
from collections import deque
from dataclasses import dataclass, field

from common.errors import NotReady
from updater.core.effects import CommandKind, OperatorCommand
from updater.core.record import Event, ModelRecord
from updater.stages.commands import Refusal, may_apply_now

_WRITE_SECONDS = 15.0  # what is being written down is written or refused by then
# An operator who takes back or stops does not wait for a transfer or a gate to end by itself.
URGENT = frozenset({CommandKind.PAUSE, CommandKind.ROLLBACK})


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command led to: written down, or refused."""

    after: ModelRecord
    events: tuple[Event, ...]
    refusal: Refusal | None = None


@dataclass(slots=True, eq=False)
class _Waiting:
    command: OperatorCommand
    answered: threading.Event = field(default_factory=threading.Event)
    result: CommandResult | None = None
    is_taken: bool = False  # it is being written down


class CommandQueue:
    """A queue with one reader. From any thread."""

    def __init__(self, wake: threading.Event) -> None:
        """Start empty; `wake` is set when something has come."""
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()

    def ask(self, command: OperatorCommand, seconds: float) -> CommandResult:
        """Ask, and wait until it is written down.

        Raises:
            NotReady: the model was busy for so long; it was not done, and will not be.
        """
        waiting = _Waiting(command)
        with self._lock:
            self._queue.append(waiting)
        self._wake.set()
        waiting.answered.wait(seconds)
        with self._lock:
            if not waiting.is_taken and waiting in self._queue:
                self._queue.remove(waiting)
        if waiting.is_taken:
            waiting.answered.wait(_WRITE_SECONDS)
        if waiting.result is None:
            message = "the updater is busy with a step that cannot be interrupted; ask again"
            raise NotReady(message, reason="UPDATER_BUSY", retry_after_seconds=seconds)
        return waiting.result

    def oldest(self) -> OperatorCommand | None:
        """The command to be applied next."""
        with self._lock:
            return self._queue[0].command if self._queue else None

    def take(self, command: OperatorCommand) -> bool:
        """Begin to apply one; False if whoever asked has given up."""
        with self._lock:
            for waiting in self._queue:
                if waiting.command is command:
                    waiting.is_taken = True
                    return True
        return False

    def is_urgent(self, record: ModelRecord) -> bool:
        """Whether one waits for which a step in progress should be broken off."""
        with self._lock:
            kinds = [waiting.command for waiting in self._queue if waiting.command.kind in URGENT]
        return any(may_apply_now(record, command) for command in kinds)

    def grant(self, command: OperatorCommand, result: CommandResult) -> None:
        """Answer whoever asked."""
        with self._lock:
            for waiting in self._queue:
                if waiting.command is command:
                    waiting.result = result
                    self._queue.remove(waiting)
                    waiting.answered.set()
                    return
