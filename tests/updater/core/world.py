"""One model's world for tests, in the words of the domain: publish, tick, settle, crash."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random

from dev.harness.simulated_card import Card
from dev.harness.simulated_server import SimServer
from tests.updater.simulators import (
    Quality,
    SimConverter,
    SimGolden,
    SimHub,
    SimJournal,
    SimStore,
    bundle_of,
    content_of,
    source_of,
)
from tests.updater.simulators import SimDisk as Disk
from updater.commands import CommandQueue, _Waiting
from updater.core.breaker import BreakerState
from updater.core.facts import CommandKind, Facts, OperatorCommand
from updater.core.record import Event, Installed, ModelRecord, Outcome, Stage
from updater.core.rules import GateRules, ObserveRules, Rules
from updater.loop import CrashPoints, LoopDependencies, ModelLoop, StepGuard
from updater.perform import Ports
from updater.stages.commands import Refusal

RULES = Rules(
    gate=GateRules(),
    observe=ObserveRules(window_seconds=30.0, max_seconds=120.0, min_answers=10, keep_warm_seconds=5.0),
    poll_seconds=10.0,
)
MODEL = "shapes"


class ManualClock:
    """A clock that only a test advances; the wall clock can be set separately."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.wall = datetime(2026, 6, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.wall

    def passes(self, seconds: float) -> None:
        """Both clocks go on."""
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds)


class Operators(CommandQueue):
    """Operators whose commands are applied by later steps; no thread waits."""

    def leave(self, command: OperatorCommand) -> _Waiting:
        """Put a command into the queue; the returned object gets its result."""
        waiting = _Waiting(command)
        self._queue.append(waiting)
        return waiting


class Died(Exception):
    """The updater's process is gone."""


class SimulatedCrash(CrashPoints):
    """Ends the updater "before" or "after" the next effect, or a named one; keeps the name of the last action."""

    dies = ""
    action = ""

    def reach(self, name: str) -> None:
        """Die here, if this is the place."""
        when, _, action = name.partition(":")
        if action:
            self.action = action
        if action and self.dies in (when, name):
            raise Died


class NoObserver:
    """Discards metrics and logs."""

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None: ...

    def report_error(self, model: str, error: str, message: str) -> None: ...

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None: ...


@dataclass(slots=True)
class World:
    """An updater on simulated ports, driven step by step."""

    rules: Rules = RULES
    requests_a_second: float = 2.0
    card: Card | None = None  # the configured device, if there is one
    random: Random = field(default_factory=lambda: Random(7))
    clock: ManualClock = field(default_factory=ManualClock)
    disk: Disk = field(default_factory=Disk)
    hub: SimHub = field(default_factory=SimHub)
    qualities: dict[str, Quality] = field(default_factory=dict)
    server: SimServer = field(init=False)
    store: SimStore = field(init=False)
    converter: SimConverter = field(init=False)
    golden: SimGolden = field(init=False)
    loop: ModelLoop = field(init=False)
    operators: Operators = field(init=False)
    crash: SimulatedCrash = field(init=False)
    stopping: threading.Event = field(init=False)
    boot_id: str = "boot 1"  # of the machine; empty: the system has none
    _ids: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        """Start a server and an updater on an empty disk."""
        self.store = SimStore(self.disk, self.qualities)
        self.converter = SimConverter(self.store)
        self.server = SimServer(
            self._boots_from, lambda bundle: self.qualities[content_of(bundle)].loads, card=self.card
        )
        self.server.changes = lambda bundle: self.qualities[content_of(bundle)].changes
        self.server.fails = lambda bundle: self.qualities[content_of(bundle)].fails_callers
        self.server.row_seconds = lambda bundle: self.qualities[content_of(bundle)].row_seconds
        self.golden = SimGolden(self.server, self.qualities)
        self.server.start()
        self.start_updater()

    # What the world does.

    def publish(self, revision: str, quality: Quality | None = None, content: str = "") -> None:
        """Put a revision on the hub."""
        content = content or f"{revision}-{next(self._ids)}"
        self.qualities[content] = quality or Quality()
        self.hub.contents[revision] = content

    def install(self, revision: str, quality: Quality | None = None) -> None:
        """Have a revision committed, as after a good update."""
        self.publish(revision, quality)
        self.settle()
        assert revision == self.committed

    def imported(self, revision: str) -> None:
        """Seal a bundle and write the pointer, as an import does."""
        self.qualities[revision] = Quality()
        self.disk.sealed.add(bundle_of(revision))
        self.disk.pointer = Installed(revision, source_of(revision), bundle_of(revision))
        self.server.start()

    def start_updater(self) -> None:
        """Start another updater process: it knows what the journal says."""
        wake, self.stopping = threading.Event(), threading.Event()
        self.operators, self.crash = Operators(wake), SimulatedCrash()
        self.loop = ModelLoop(
            LoopDependencies(
                model=MODEL,
                ports=Ports(self.hub, self.server, self.golden, self.store, self.converter, self.clock),
                journal=SimJournal(self.disk),
                rules=self.rules,
                clock=self.clock,
                observer=NoObserver(),
                crash=self.crash,
                commands=self.operators,
                guard=StepGuard(self.operators, self.stopping),
                wake=wake,
                stopping=self.stopping,
                fresh_id=lambda: f"update-{next(self._ids)}",
                jitter=self.random.random,
                boot_id=self.boot_id,
            )
        )

    def stop_updater(self) -> None:
        """Stop the updater in good order; it writes that down."""
        self.stopping.set()
        self.loop.run()

    def crash_server(self) -> None:
        """The server is killed and supervised back."""
        self.server.end(orderly=False)
        self.server.start()

    def cut_power(self) -> None:
        """The machine loses its power, and everything is started again."""
        self.boot_id = f"boot {next(self._ids) + 2}" if self.boot_id else ""
        self.crash_server()
        self.start_updater()

    def stop_server(self) -> None:
        """The server is stopped in good order and started again."""
        self.server.end(orderly=True)
        self.server.start()

    def passes(self, seconds: float) -> None:
        """Time passes and callers come."""
        self.clock.passes(seconds)
        self.server.passes(seconds)
        requests = round(self.requests_a_second * seconds)
        if requests:
            self.server.answers(requests, lambda bundle: self.qualities[content_of(bundle)].fails_callers)

    def command(self, kind: CommandKind, argument: str = "", note: str = "") -> Refusal | None:
        """An operator asks for something and waits until it is done; returns why it was refused."""
        asked = self.operators.leave(OperatorCommand(kind, argument, note))
        for _ in range(200):
            if asked.result is not None:
                return asked.result.refusal
            self.tick()
        raise AssertionError(f"{kind} was never applied")

    def tick(self, dies: str = "") -> str:
        """Take one step.

        Args:
            dies: "before" the step's effect, or "after" it and before the record is written; or only if the step is
                the named one: "after:RetireLoad".

        Returns:
            Name of the action that was decided.
        """
        self.crash.dies, crash = dies, self.crash
        try:
            pause = self.loop.step()
        except Died:
            self.start_updater()
            return crash.action
        self.passes(pause or 0.01)
        return crash.action

    def facts(self) -> Facts:
        """What the updater sees now."""
        return self.loop._look(self.clock.monotonic())  # noqa: SLF001  for decisions that a test asks for itself

    def tick_until(self, stage: Stage, limit: int = 2000) -> None:
        """Step until a stage is entered."""
        for _ in range(limit):
            if self.stage is stage:
                return
            self.tick()
        raise AssertionError(f"{stage} was not reached: {self.stage}, {self.event_names()[-8:]}")

    def settle(self, seconds: float = 900.0) -> None:
        """Step until nothing is under way, and has not been for two polls."""
        ends, calm = self.clock.seconds + seconds, 0.0
        while self.clock.seconds < ends:
            before = self.clock.seconds
            action = self.tick()
            watch, hub = self.record.watch, self.record.hub
            is_looking = hub.state is BreakerState.CLOSED and watch.seconds_to_poll <= 2 * self.rules.poll_seconds
            is_calm = self.stage in (Stage.IDLE, Stage.HELD) and action == "Wait" and is_looking
            calm = calm + self.clock.seconds - before if is_calm or action == "PollHub" else 0.0
            if calm > 2.5 * self.rules.poll_seconds:
                return
        raise AssertionError(f"it does not settle: {self.stage}, {self.event_names()[-8:]}")

    # What can be seen.

    @property
    def record(self) -> ModelRecord:
        """As the updater knows it."""
        return self.loop.publisher.snapshot.record

    @property
    def stage(self) -> Stage:
        """The stage of the update."""
        return self.record.stage

    @property
    def serving(self) -> str:
        """Revision, by the content, of what answers; empty if nothing does."""
        bundle = self.server.serving
        return content_of(bundle).rsplit("-", 1)[0] if bundle else ""

    @property
    def committed(self) -> str:
        """Revision that is committed."""
        return "" if self.record.committed is None else self.record.committed.revision

    @property
    def quarantined(self) -> set[str]:
        """Revisions in quarantine."""
        return {row.revision for row in self.record.quarantine}

    def event_names(self) -> list[str]:
        """Names of all events so far."""
        return [event.name for event in self.disk.events]

    def outcomes(self, revision: str) -> list[Outcome]:
        """How updates to a revision ended."""
        rows = [event for event in self.disk.events if event.outcome is not None and event.update is not None]
        return [row.outcome for row in rows if row.outcome and row.update and row.update.revision == revision]

    def last(self, name: str) -> Event:
        """The last event of this name."""
        return next(event for event in reversed(self.disk.events) if event.name == name)

    def with_rules(self, **changes: object) -> None:
        """Other rules from now on: the updater is started again with them."""
        self.rules = replace(self.rules, **changes)  # type: ignore[arg-type]
        self.start_updater()

    def _boots_from(self) -> str:
        pointer = self.disk.pointer
        is_there = self.disk.pointer_is_readable and pointer is not None and pointer.bundle_digest in self.disk.sealed
        return pointer.bundle_digest if pointer is not None and is_there else ""
