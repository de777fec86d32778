"""One model's loop: read the facts, refresh the record, decide one step, perform it, write the record, repeat."""

import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from common.clock import Clock
from updater.commands import CommandQueue
from updater.core.effects import EffectFailure, FailureKind, Probed, Result, Wait
from updater.core.facts import Facts, GoldenFacts, PointerState, ServerState
from updater.core.ports import EffectFailed, Journal, JournalUnusable
from updater.core.record import Installed, ModelRecord
from updater.core.rules import Rules
from updater.metrics import Observer
from updater.perform import Ports, perform
from updater.stages.commands import CommandResult
from updater.stages.machine import Step, apply_result, decide, refresh
from updater.stages.transitions import Transition, is_worth_writing, note_orderly_stop
from updater.status import StatusPublisher

STATE_SECONDS = 5.0  # of one look at the server
GRACE_SECONDS = 60.0  # on top of an effect's own deadline, before its thread is taken for stuck
WRITE_PAUSE_SECONDS, MAX_WRITE_PAUSE_SECONDS = 2.0, 60.0  # after a journal that could not be written
LOOK_PAUSE_SECONDS = 2.0  # after a look that failed, for example for lack of open files
_F = TypeVar("_F")


class Interrupted(Exception):
    """A step was interrupted: the updater stops, or an operator's command is urgent. Its result is not applied."""


class StepGuard:
    """Interrupts a long effect when the updater stops or an urgent command waits. Called by the ports of one model."""

    def __init__(self, commands: CommandQueue, stopping: threading.Event) -> None:
        """Watch these commands and this event."""
        self._commands = commands
        self._stopping = stopping
        self.record: ModelRecord | None = None

    def __call__(self) -> None:
        """Check once.

        Raises:
            Interrupted: the step must end now.
        """
        if self._stopping.is_set() or (self.record is not None and self._commands.is_urgent(self.record)):
            raise Interrupted


_STOP_PREFIX = "stop:"


class CrashPoints:
    """Points at which a test can kill or freeze this process, more exactly than by a signal from outside.

    A test arms one point by the variable HOTSLOT_CRASH_AT, for example "OBSERVING"; the process then kills itself
    (SIGKILL):
     - `<STAGE>`: right after the record that enters the stage was written,
     - `before:<Action>`: after the decision, before its effect,
     - `after:<Action>`: after its effect, before the record is written.
    With the prefix `stop:` the process stops once instead (SIGSTOP), until SIGCONT.
    """

    def __init__(self, armed: str = "") -> None:
        """Arm one point; none if empty."""
        self._armed = armed

    def reach(self, name: str) -> None:
        """Kill or stop the process if this point is armed."""
        if not self._armed or name != self._armed.removeprefix(_STOP_PREFIX):
            return
        is_stop = self._armed.startswith(_STOP_PREFIX)
        self._armed = ""
        # To this thread: the process may give a signal of its own to another one, and this one would go on meanwhile.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP if is_stop else signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class LoopDependencies:
    """The parts that the loop of one model works with."""

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
    boot_id: str = ""  # of this start of the machine; empty: not known


class ModelLoop:
    """Runs in one thread; `publisher` may be read from any."""

    def __init__(self, dependencies: LoopDependencies) -> None:
        """Load the record.

        Raises:
            JournalUnusable: it cannot be read.
        """
        self._dependencies = dependencies
        self._record = dependencies.journal.load(dependencies.model) or ModelRecord(dependencies.model)
        self._written = self._record
        self._has_begun = False
        self._before = dependencies.clock.monotonic()  # of the last step that was applied
        self._rest = Wait(0.0)  # what the last step decided, if it was to wait
        self._is_durable = False  # whether the step in progress was written to the journal
        self._unwritten = 0  # steps in a row that could not be written, and were to wait longer
        self._trouble = ""  # why it was not
        self._faults: dict[str, str] = {}  # of facts that the last look could not read, by their names
        self._due = self._before + GRACE_SECONDS  # clock.monotonic() by which the step in progress must be over
        self.publisher = StatusPublisher(self._record, dependencies.clock)

    def reload(self) -> None:
        """Start over from the journal, as a new process would, after an exception has ended `run`.

        Raises:
            JournalUnusable: the journal cannot be trusted any more.
            OSError: it cannot be read now.
        """
        dependencies = self._dependencies
        self._record = dependencies.journal.load(dependencies.model) or ModelRecord(dependencies.model)
        self._written, self._has_begun = self._record, False

    @property
    def rest(self) -> Wait:
        """The pause that the last step decided."""
        return self._rest

    def is_moving(self) -> bool:
        """Whether the step in progress is within its time limit; from any thread."""
        return self._dependencies.clock.monotonic() <= self._due

    def run(self) -> None:
        """Step until asked to stop, then write down that the stop was in good order.

        Raises:
            JournalUnusable: the journal cannot be trusted any more.
        """
        dependencies = self._dependencies
        while not dependencies.stopping.is_set():
            with contextlib.suppress(Interrupted):
                dependencies.wake.wait(self.step())
        if self._has_begun:
            self._write(Transition(note_orderly_stop(self._record)))

    def step(self) -> float:
        """Take one step.

        Returns:
            Seconds until the next is due.

        Raises:
            Interrupted: the step was interrupted; the record is as before.
            JournalUnusable: the journal cannot be trusted any more.
        """
        dependencies = self._dependencies
        dependencies.wake.clear()  # before looking: what comes now wakes again
        began = dependencies.clock.monotonic()
        self._due = began + GRACE_SECONDS
        try:
            facts = self._look(began)
        except OSError as error:
            self._report_failed_look(error)
            return LOOK_PAUSE_SECONDS
        record, noted = refresh(self._record, facts, dependencies.rules)
        dependencies.guard.record = record
        step = decide(record, facts, dependencies.rules)
        if isinstance(step, CommandResult) and not dependencies.commands.take(step.command):
            return 0.0
        name = type(step).__name__
        self._due = dependencies.clock.monotonic() + getattr(step, "deadline_seconds", 0.0) + GRACE_SECONDS
        self._is_durable, self._trouble = False, "the update loop has failed and is started again"
        try:
            dependencies.crash.reach(f"before:{name}")
            result, after = self._perform(record, step, facts)
            dependencies.crash.reach(f"after:{name}")
            after = Transition(after.record, (*noted, *after.events))
            if not self._write(after, must=facts.is_first or isinstance(step, CommandResult)):
                pause = self._choose_write_pause(step, facts)
                self._due = dependencies.clock.monotonic() + pause + GRACE_SECONDS
                return pause
        finally:
            if isinstance(step, CommandResult):
                self._return_command(step)
        self._before, self._has_begun = began, True
        self._rest = step if isinstance(step, Wait) else Wait(0.0)
        self._due = dependencies.clock.monotonic() + GRACE_SECONDS
        is_in_vain = isinstance(result, EffectFailure) or result == Probed(0, 0)
        return max(self._rest.seconds, dependencies.rules.look_seconds if is_in_vain else 0.0)

    def _choose_write_pause(self, step: Step | CommandResult, facts: Facts) -> float:
        """Seconds before a step whose record could not be written is taken again, with its effect: a poll, a gate.

        Steps of a trial renew its lease, and an operator waits for a command: they do not wait longer.
        """
        if isinstance(step, CommandResult) or (facts.server is not None and facts.server.trial is not None):
            return WRITE_PAUSE_SECONDS
        pause = min(MAX_WRITE_PAUSE_SECONDS, WRITE_PAUSE_SECONDS * 2.0 ** min(self._unwritten, 8))
        self._unwritten += 1
        return pause

    def _return_command(self, result: CommandResult) -> None:
        """Answer a command that was written down, whatever failed afterwards; give back one that was not."""
        if self._is_durable:
            self._dependencies.commands.answer(result)
        else:
            self._dependencies.commands.give_back(result.command, self._trouble)

    def _perform(self, record: ModelRecord, step: Step | CommandResult, facts: Facts) -> tuple[Result, Transition]:
        """Perform the step's effect, if it has one; returns its result, and the record after it."""
        match step:
            case Transition():
                return None, step
            case CommandResult():
                return None, step.transition
            case Wait():
                return None, Transition(record)
            case _:
                result = perform(step, self._dependencies.ports)
                return result, apply_result(record, step, result, facts, self._dependencies.rules)

    def _write(self, after: Transition, *, must: bool = False) -> bool:
        """Write a step to the journal, unless only timers have advanced a little; False if nothing could be written."""
        dependencies, (record, events) = self._dependencies, after
        before = self._record.stage
        if must or events or is_worth_writing(self._written, record):
            try:
                dependencies.journal.write(record, events)
            except OSError as error:
                dependencies.observer.report_error(dependencies.model, "journal_not_written", str(error))
                self.publisher.report_fault(str(error))
                self._trouble = str(error)
                return False
            self._written, self._is_durable, self._unwritten = record, True, 0
            if record.stage is not before:
                dependencies.crash.reach(record.stage.value)
            dependencies.observer.record_written(record, events)
        self._record = record
        self.publisher.publish(record, events, "; ".join(self._faults.values()))
        return True

    def _look(self, now: float) -> Facts:
        """Read the facts.

        Raises:
            JournalUnusable: the journal was deleted or replaced.
            OSError: the state folder cannot be read.
        """
        self._dependencies.journal.check()
        dependencies, ports = self._dependencies, self._dependencies.ports
        server = self._read("the server's state", self._server, None)
        unknown: tuple[Installed | None, PointerState] = (None, PointerState.UNKNOWN)
        pointer, pointer_state = self._read("the committed pointer", self._pointer, unknown)
        committed = self._record.committed
        return Facts(
            now=dependencies.clock.now(),
            elapsed_seconds=now - self._before if self._has_begun else 0.0,
            is_first=not self._has_begun,
            fresh_id=dependencies.fresh_id(),
            jitter=dependencies.jitter(),
            server=server,
            pointer=pointer,
            pointer_state=pointer_state,
            golden=self._read("the golden set", ports.golden.facts, GoldenFacts("", problem="UNREADABLE")),
            sealed=ports.store.sealed(),
            free_bytes=ports.store.free_bytes(),
            committed_converts_to=""
            if committed is None
            else self._read("the committed source", lambda: ports.store.converts_to(committed), ""),
            command=dependencies.commands.oldest(self._record),
            boot_id=dependencies.boot_id,
        )

    def _read(self, what: str, read: Callable[[], _F], unknown: _F) -> _F:
        """A fact, or `unknown` if its port cannot read it, or fails as it never should.

        The failure is shown, and the look goes on: what an operator commands then needs no fact of that port.
        """
        try:
            found = read()
        except (Interrupted, JournalUnusable):
            raise
        except Exception as error:  # noqa: BLE001  the disk, an input that its reader did not foresee, or a bug
            fault = f"{what} cannot be read: {_describe(error)}"
            if self._faults.get(what) != fault:
                self._dependencies.observer.report_error(self._dependencies.model, "look_failed", fault)
            self._faults[what] = fault
            return unknown
        self._faults.pop(what, None)
        return found

    def _report_failed_look(self, error: OSError) -> None:
        """Show that this look failed; nothing was decided, and the next look decides."""
        message = _describe(error)
        self.publisher.report_fault(f"the state cannot be read: {message}")
        self._dependencies.observer.report_error(self._dependencies.model, "look_failed", message)

    def _server(self) -> ServerState | None:
        try:
            return self._dependencies.ports.control.state(STATE_SECONDS)
        except EffectFailed:
            return None

    def _pointer(self) -> tuple[Installed | None, PointerState]:
        try:
            return self._dependencies.ports.store.pointer(), PointerState.READABLE
        except EffectFailed as error:
            if error.failure.kind is FailureKind.PERMANENT:
                return None, PointerState.MALFORMED
            raise


def _describe(error: Exception) -> str:
    """What the system refused; or the kind of an unforeseen exception, and where it was raised."""
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    if isinstance(error, EffectFailed):
        return error.failure.message
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else f" at {Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"
    return f"{type(error).__name__}{where}"
