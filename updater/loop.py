"""One model's life: read the record and the facts, decide one step, perform it, write the record. Again."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.clock import Clock
from updater.commands import CommandQueue, CommandResult
from updater.core.effects import Action, ApplyCommand, Begin, Failed, Wait
from updater.core.ports import EffectFailed, Facts, Journal, ServerState
from updater.core.record import Event, Installed, ModelRecord
from updater.core.rules import Rules
from updater.metrics import Observer
from updater.perform import Ports, perform
from updater.stages.apply_result import apply_result
from updater.stages.commands import refusal
from updater.stages.decide import decide
from updater.stages.transitions import is_worth_writing, stopped
from updater.status import StatusPublisher

STATE_SECONDS = 5.0  # of one look at the server
GRACE_SECONDS = 60.0  # on top of an effect's own deadline, before its thread is taken for stuck
WRITE_PAUSE_SECONDS = 2.0  # after a journal that could not be written


class Interrupted(Exception):
    """A step was broken off: the updater stops, or an operator takes back. Nothing of it is concluded."""


class StepGuard:
    """Breaks off what takes long, when there is reason to. Called by the ports of one model."""

    def __init__(self, commands: CommandQueue, stopping: threading.Event) -> None:
        """Watch an operator's commands and the end of the process."""
        self._commands = commands
        self._stopping = stopping
        self.record: ModelRecord | None = None

    def __call__(self) -> None:
        """Go on, or raise.

        Raises:
            Interrupted: there is reason to stop.
        """
        if self._stopping.is_set() or (self.record is not None and self._commands.is_urgent(self.record)):
            raise Interrupted


_FREEZE = "stop:"


class CrashPoints:
    """Where this process is to die; nowhere, unless a test says so."""

    def __init__(self, armed: str = "") -> None:
        """Arm one point; empty: none."""
        self._armed = armed

    def pass_by(self, name: str) -> None:
        """Die or freeze here, if this is the place."""
        if not self._armed or name != self._armed.removeprefix(_FREEZE):
            return
        is_freeze = self._armed.startswith(_FREEZE)
        self._armed = ""
        os.kill(os.getpid(), signal.SIGSTOP if is_freeze else signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What a loop is made of."""

    model: str
    ports: Ports
    journal: Journal
    rules: Rules
    clock: Clock
    observer: Observer
    crash: CrashPoints
    commands: CommandQueue
    guard: StepGuard
    wake: threading.Event  # set when something has come that a wait should not outlast
    stopping: threading.Event
    fresh_id: Callable[[], str]
    jitter: Callable[[], float]  # drawn evenly from 0 to 1


class ModelLoop:
    """Runs in one thread; `publisher` may be read from any."""

    def __init__(self, parts: LoopParts) -> None:
        """Load the record.

        Raises:
            JournalUnusable: it cannot be read.
        """
        self._parts = parts
        self._record = parts.journal.load(parts.model) or ModelRecord(parts.model)
        self._written = self._record
        self._has_begun = False
        self._before = parts.clock.monotonic()  # of the last step that was concluded
        self._rest = Wait(0.0)  # what the last step decided, if it was to wait
        self._due = self._before + GRACE_SECONDS  # clock.monotonic() by which the step in progress must be over
        self.publisher = StatusPublisher(self._record, parts.clock)

    @property
    def rest(self) -> Wait:
        """Why and how long it waits."""
        return self._rest

    def is_moving(self) -> bool:
        """Whether the step in progress is within its limits; from any thread."""
        return self._parts.clock.monotonic() <= self._due

    def run(self) -> None:
        """Step until asked to stop, then write down that the stop was in good order.

        Raises:
            JournalUnusable: the journal cannot be trusted any more.
        """
        parts = self._parts
        while not parts.stopping.is_set():
            with contextlib.suppress(Interrupted):
                parts.wake.wait(self.step())
        if self._has_begun:
            self._write(stopped(self._record), ())

    def step(self) -> float:
        """Take one step.

        Returns:
            Seconds until the next is due.

        Raises:
            Interrupted: it was broken off; the record is as before.
            JournalUnusable: the journal cannot be trusted any more.
        """
        parts = self._parts
        parts.wake.clear()  # before looking: what comes now wakes again
        began = parts.clock.monotonic()
        facts = self._look(began)
        parts.guard.record = self._record
        action = decide(self._record, facts, parts.rules)
        if isinstance(action, ApplyCommand) and not parts.commands.take(action.command):
            return 0.0
        self._due = parts.clock.monotonic() + getattr(action, "deadline_seconds", 0.0) + GRACE_SECONDS
        parts.crash.pass_by(f"before:{type(action).__name__}")
        result = perform(action, parts.ports)
        parts.crash.pass_by(f"after:{type(action).__name__}")
        record, events = apply_result(self._record, action, result, facts, parts.rules)
        refused = (
            refusal(self._record, action.command, facts, parts.rules) if isinstance(action, ApplyCommand) else None
        )
        if not self._write(record, events, must=isinstance(action, Begin | ApplyCommand)):
            return WRITE_PAUSE_SECONDS
        self._before, self._has_begun = began, True
        if isinstance(action, ApplyCommand):
            parts.commands.grant(action.command, CommandResult(record, tuple(events), refused))
        return self._pause(action, is_failed=isinstance(result, Failed))

    def _pause(self, action: Action, *, is_failed: bool) -> float:
        self._due = self._parts.clock.monotonic() + GRACE_SECONDS
        self._rest = action if isinstance(action, Wait) else Wait(0.0)
        return max(self._rest.seconds, self._parts.rules.look_seconds if is_failed else 0.0)

    def _write(self, record: ModelRecord, events: Sequence[Event], *, must: bool = False) -> bool:
        """Make a step durable, unless only a little time has passed; False if that failed and nothing has changed."""
        parts = self._parts
        before = self._record.stage
        if must or events or is_worth_writing(self._written, record):
            try:
                parts.journal.write(record, events)
            except OSError as error:
                parts.observer.troubled(parts.model, "journal_not_written", str(error))
                return False
            self._written = record
            if record.stage is not before:
                parts.crash.pass_by(record.stage.value)
            parts.observer.written(record, events)
        self._record = record
        self.publisher.show(record, events)
        return True

    def _look(self, now: float) -> Facts:
        """See how things are."""
        parts, ports = self._parts, self._parts.ports
        pointer, is_readable = self._pointer()
        committed = self._record.committed
        return Facts(
            now=parts.clock.now(),
            elapsed_seconds=now - self._before if self._has_begun else 0.0,
            is_first=not self._has_begun,
            fresh_id=parts.fresh_id(),
            jitter=parts.jitter(),
            server=self._server(),
            pointer=pointer,
            pointer_is_readable=is_readable,
            golden=ports.golden.facts(),
            sealed=ports.store.sealed(),
            committed_converts_to="" if committed is None else ports.store.converts_to(committed),
            command=parts.commands.oldest(),
        )

    def _server(self) -> ServerState | None:
        try:
            return self._parts.ports.control.state(STATE_SECONDS)
        except EffectFailed:
            return None

    def _pointer(self) -> tuple[Installed | None, bool]:
        try:
            return self._parts.ports.store.pointer(), True
        except EffectFailed:
            return None, False
