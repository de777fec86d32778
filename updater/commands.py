"""The queue of operators' commands to one model, from their threads to the model's own."""

import threading
from collections import deque
from dataclasses import dataclass, field

from common.errors import NotReady
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import ModelRecord
from updater.stages.commands import CommandResult, must_wait

_WRITE_SECONDS = 15.0  # longest wait for the write of a command that is being applied
# They do not wait for a transfer or a gate to end by itself.
URGENT = frozenset({CommandKind.PAUSE, CommandKind.ROLLBACK})


@dataclass(slots=True, eq=False)
class _Waiting:
    command: OperatorCommand
    answered: threading.Event = field(default_factory=threading.Event)
    result: CommandResult | None = None
    is_taken: bool = False  # it is being applied


class CommandQueue:
    """A queue with one reader. From any thread."""

    def __init__(self, wake: threading.Event) -> None:
        """Start empty; `wake` is set when a command is put into the queue."""
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()

    def ask(self, command: OperatorCommand, seconds: float) -> CommandResult:
        """Put a command into the queue and wait until its result is durable.

        Raises:
            NotReady: the model was busy for all of `seconds`; the command was not applied and was removed.
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
        """Claim a command before it is applied; False if its caller has given up."""
        with self._lock:
            for waiting in self._queue:
                if waiting.command is command:
                    waiting.is_taken = True
                    return True
        return False

    def is_urgent(self, record: ModelRecord) -> bool:
        """Whether a command waits that interrupts the step in progress."""
        with self._lock:
            kinds = {waiting.command.kind for waiting in self._queue} & URGENT
        return any(not must_wait(record, kind) for kind in kinds)

    def answer(self, result: CommandResult) -> None:
        """Return the result to the command's caller."""
        with self._lock:
            for waiting in self._queue:
                if waiting.command is result.command:
                    waiting.result = result
                    self._queue.remove(waiting)
                    waiting.answered.set()
                    return
