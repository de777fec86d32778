"""A command belongs to its caller: who was told of a failure, or has gone, is not surprised by it later."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from common.errors import NotReady
from tests.updater.core.world import MODEL, NoObserver, World
from updater import commands
from updater.commands import CommandQueue
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import Event, ModelRecord
from updater.stages.commands import CommandResult

LIMIT_SECONDS = 10.0
ALL_KINDS = tuple(CommandKind)
RECORD = ModelRecord(MODEL)  # in which no command must wait


@dataclass
class Caller:
    """An operator in a thread of his own, who may go before the answer has come."""

    queue: CommandQueue
    kind: CommandKind = CommandKind.PAUSE
    seconds: float = LIMIT_SECONDS
    result: CommandResult | None = None
    failure: NotReady | None = None
    _ends: list[Callable[[], None]] = field(default_factory=list)
    _asked: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> "Caller":
        """Ask, and wait until the command is in the queue."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._asked.wait(LIMIT_SECONDS)
        return self

    def go(self) -> None:
        """The call ends before its answer."""
        self._ends[0]()
        self.wait()

    def wait(self) -> None:
        """Wait for the answer."""
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        def on_end(function: Callable[[], None]) -> bool:
            self._ends.append(function)
            self._asked.set()
            return True

        try:
            self.result = self.queue.ask(OperatorCommand(self.kind, "1.0.0"), self.seconds, on_end)
        except NotReady as failure:
            self.failure = failure


@pytest.fixture
def queue(world: World) -> CommandQueue:
    """The commands of a loop that a test steps."""
    return world.operators


def step(world: World) -> ModelRecord:
    """One step; returns what the journal says after it."""
    world.tick()
    return world.loop._dependencies.journal.load(MODEL) or ModelRecord(MODEL)  # noqa: SLF001  what is durable


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_caller_who_has_gone_changes_nothing(world: World, queue: CommandQueue, kind: CommandKind) -> None:
    """Whether he hung up, or his time was over: the command is not applied by any later step."""
    before = world.record
    Caller(queue, kind).ask().go()
    assert queue.oldest(RECORD) is None
    assert step(world).quarantine == before.quarantine
    assert "operator_acted" not in world.event_names()[-1:]
    assert world.record.paused == before.paused


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_command_that_could_not_be_written_is_dropped_with_its_caller(
    world: World, queue: CommandQueue, kind: CommandKind
) -> None:
    """A full disk: the command was applied in memory, never written, and must not be written when there is space."""
    caller, before = Caller(queue, kind).ask(), world.record
    world.disk.journal_fails = True
    step(world)
    caller.go()
    assert caller.failure is not None
    assert caller.failure.reason == "JOURNAL_NOT_WRITTEN"
    world.disk.journal_fails = False
    events = len(world.disk.events)
    assert step(world).paused == before.paused
    assert world.record.committed == before.committed
    assert world.record.quarantine == before.quarantine
    assert [event.name for event in world.disk.events[events:] if event.name in OPERATORS_EVENTS] == []


OPERATORS_EVENTS = ("updates_paused", "updates_resumed", "update_requested", "command_refused", "operator_acted")


def test_a_command_is_tried_again_while_its_caller_waits(world: World, queue: CommandQueue) -> None:
    """The disk was full for a moment: he who waits gets what he asked for."""
    caller = Caller(queue).ask()
    world.disk.journal_fails = True
    assert not step(world).paused
    world.disk.journal_fails = False
    assert step(world).paused
    caller.wait()
    assert caller.failure is None
    assert caller.result is not None
    assert caller.result.record.paused


def test_a_journal_that_cannot_be_written_is_shown_and_its_effects_are_not_repeated_at_full_speed(world: World) -> None:
    """Polls of the hub, or a whole gate; a trial's steps do not wait longer, and a command ends the pause."""
    world.passes(1000.0)
    world.disk.journal_fails = True
    pauses = [world.loop.step() for _ in range(7)]
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert "no space left" in world.loop.publisher.snapshot.fault

    world.disk.journal_fails = False
    world.loop.step()
    assert world.loop.publisher.snapshot.fault == ""


def test_who_waits_too_short_for_a_full_disk_is_told_so(world: World, queue: CommandQueue) -> None:
    """Nothing was changed, and the reason is the journal, not a busy updater."""
    world.disk.journal_fails = True
    caller = Caller(queue, seconds=0.2)
    caller.ask()
    while queue.oldest(RECORD) is not None:
        step(world)
    caller.wait()
    assert caller.failure is not None
    assert caller.failure.reason == "JOURNAL_NOT_WRITTEN"
    assert "no space left" in str(caller.failure)


def test_a_write_that_hangs_leaves_its_caller_in_no_false_belief(
    queue: CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He is told to look, not that nothing was done; and if it fails in the end, it is not tried again."""
    monkeypatch.setattr(commands, "_WRITE_SECONDS", 0.01)
    caller = Caller(queue, seconds=LIMIT_SECONDS).ask()
    command = queue.oldest(RECORD)
    assert command is not None
    assert queue.take(command)
    caller.go()
    assert caller.failure is not None
    assert caller.failure.reason == "COMMAND_UNCONFIRMED"
    queue.give_back(command, "the journal cannot be written")
    assert queue.oldest(RECORD) is None


class FailingObserver(NoObserver):
    """Fails once a record was written."""

    def record_written(self, record: ModelRecord, events: tuple[Event, ...]) -> None:  # type: ignore[override]
        raise ValueError("bug")


def test_a_command_that_was_written_is_answered_whatever_fails_then(
    world: World, queue: CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop fails after the write: the journal has it, so its caller hears that it is done."""
    caller = Caller(queue).ask()
    monkeypatch.setattr(NoObserver, "record_written", FailingObserver.record_written)
    with pytest.raises(ValueError, match="bug"):
        step(world)
    caller.wait()
    assert caller.failure is None
    assert caller.result is not None
    assert caller.result.record.paused


def test_the_loop_that_fails_before_the_write_gives_the_command_back(
    world: World, queue: CommandQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is applied once the loop runs again, if its caller still waits."""
    caller = Caller(queue).ask()

    def fail(*_: object) -> None:
        raise ValueError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(type(world.crash), "reach", fail)
        with pytest.raises(ValueError, match="bug"):
            step(world)
    world.loop.reload()
    step(world)
    assert step(world).paused
    caller.wait()
    assert caller.failure is None
