"""The queue of operators' commands to one model, from their threads to the model's own."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import NotReady
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import ModelRecord
from updater.stages.commands import CommandResult, must_wait

_WRITE_SECONDS = 15.0  # longest wait for the write of a command that is being applied
# They do not wait for a transfer or a gate to end by itself.
URGENT = frozenset({CommandKind.PAUSE, CommandKind.ROLLBACK})
OnEnd = Callable[[Callable[[], None]], bool]  # has a function called at the end of a call; False if it has ended


def ignore_end(_function: Callable[[], None]) -> bool:
    """Of a caller who stays."""
    return True


@dataclass(slots=True, eq=False)
class _Waiting:
    command: OperatorCommand
    result: CommandResult | None = None
    is_taken: bool = False  # it is being applied
    is_left: bool = False  # its caller waits no longer
    trouble: str = ""  # why it could not be applied so far


class CommandQueue:
    """A queue with one reader. From any thread.

    A command belongs to its caller: once `ask` has raised NotReady, or its caller has gone, it is not applied any more.
    Only a write that has begun cannot be recalled.
    """

    def __init__(self, wake: threading.Event) -> None:
        """Start empty; `wake` is set when a command is put into the queue."""
        self._wake = wake
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()  # neither answered nor dropped

    def ask(self, command: OperatorCommand, seconds: float, on_end: OnEnd = ignore_end) -> CommandResult:
        """Put a command into the queue and wait until its result is durable.

        Args:
            command: to be applied.
            seconds: longest wait for the command's turn, with all attempts to write it.
            on_end: of the caller's call.

        Raises:
            NotReady: "UPDATER_BUSY" or "JOURNAL_NOT_WRITTEN": the command was not applied and was removed;
                "COMMAND_UNCONFIRMED": its write takes so long that the caller must look whether it was applied.
        """
        waiting = _Waiting(command)
        with self._changed:
            self._queue.append(waiting)
        if not on_end(lambda: self._leave(waiting)):
            self._leave(waiting)
        self._wake.set()
        with self._changed:
            self._changed.wait_for(lambda: waiting.is_left or waiting not in self._queue, seconds)
        self._leave(waiting)
        with self._changed:
            is_over = self._changed.wait_for(lambda: waiting not in self._queue, _WRITE_SECONDS)
        if waiting.result is not None:
            return waiting.result
        if not is_over:
            message = "the command is being written to the journal, which takes long; `hotslot updates status` shows it"
            raise NotReady(f"{message} when it is done", reason="COMMAND_UNCONFIRMED", retry_after_seconds=seconds)
        if waiting.trouble:
            message = f"nothing was changed: {waiting.trouble}"
            raise NotReady(message, reason="JOURNAL_NOT_WRITTEN", retry_after_seconds=seconds)
        message = "the updater is busy with a step that cannot be interrupted; ask again"
        raise NotReady(message, reason="UPDATER_BUSY", retry_after_seconds=seconds)

    def oldest(self, record: ModelRecord) -> OperatorCommand | None:
        """The command to be applied next: the oldest of those that need not wait for the stage to end."""
        with self._changed:
            waiting = [one.command for one in self._queue]
        return next((command for command in waiting if not must_wait(record, command.kind)), None)

    def take(self, command: OperatorCommand) -> bool:
        """Claim a command before it is applied; False if its caller has given up."""
        with self._changed:
            for waiting in self._queue:
                if waiting.command is command:
                    waiting.is_taken = True
                    return True
        return False

    def give_back(self, command: OperatorCommand, trouble: str) -> None:
        """Note that a claimed command was not applied: it waits for another attempt as long as its caller does.

        Args:
            command: as it was claimed; one that was answered is none.
            trouble: why, for people.
        """
        with self._changed:
            for waiting in self._queue:
                if waiting.command is command:
                    waiting.is_taken, waiting.trouble = False, trouble
                    if waiting.is_left:
                        self._drop(waiting)
                    return

    def is_urgent(self, record: ModelRecord) -> bool:
        """Whether a command waits that interrupts the step in progress."""
        with self._changed:
            kinds = {waiting.command.kind for waiting in self._queue} & URGENT
        return any(not must_wait(record, kind) for kind in kinds)

    def answer(self, result: CommandResult) -> None:
        """Return the result to the command's caller."""
        with self._changed:
            for waiting in self._queue:
                if waiting.command is result.command:
                    waiting.result = result
                    self._drop(waiting)
                    return

    def _leave(self, waiting: _Waiting) -> None:
        """The caller waits no longer, beyond the write of a command that is being applied."""
        with self._changed:
            waiting.is_left = True
            if not waiting.is_taken and waiting in self._queue:
                self._queue.remove(waiting)
            self._changed.notify_all()

    def _drop(self, waiting: _Waiting) -> None:
        self._queue.remove(waiting)
        self._changed.notify_all()
