"""One model's world for tests, in the words of the domain: publish, tick, settle, crash."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random

from dev.harness.simulated_server import Card
from tests.updater.simulators import (
    Quality,
    SimConverter,
    SimGolden,
    SimHub,
    SimJournal,
    SimServer,
    SimStore,
    bundle_of,
    content_of,
    source_of,
)
from tests.updater.simulators import SimDisk as Disk
from updater.core.breaker import BreakerState
from updater.core.effects import Action, ApplyCommand, CommandKind, Failed, OperatorCommand, Wait
from updater.core.ports import Facts
from updater.core.record import Event, Installed, ModelRecord, Outcome, Stage
from updater.core.rules import GateRules, ObserveRules, Rules
from updater.perform import Ports, perform
from updater.stages.apply_result import apply_result
from updater.stages.decide import decide
from updater.stages.transitions import is_worth_writing, stopped

RULES = Rules(
    gate=GateRules(),
    observe=ObserveRules(window_seconds=30.0, max_seconds=120.0, min_answers=10, keep_warm_seconds=5.0),
    poll_seconds=10.0,
)
MODEL = "shapes"


class ManualClock:
    """Time stands still until it is moved; the wall clock can be moved alone."""

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


@dataclass(slots=True)
class UpdaterLife:
    """What one process of the updater knows beside the journal."""

    record: ModelRecord
    written: ModelRecord
    has_begun: bool = False
    before: float = 0.0


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
    commands: list[OperatorCommand] = field(default_factory=list)
    floors: list[str] = field(default_factory=list)
    server: SimServer = field(init=False)
    store: SimStore = field(init=False)
    converter: SimConverter = field(init=False)
    golden: SimGolden = field(init=False)
    life: UpdaterLife = field(init=False)
    _ids: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        """Start a server and an updater on an empty disk."""
        self.store = SimStore(self.disk, self.qualities)
        self.converter = SimConverter(self.store)
        self.server = SimServer(
            self._boots_from, lambda bundle: self.qualities[content_of(bundle)].loads, card=self.card
        )
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
        """Somebody has sealed a bundle and moved the pointer by hand."""
        self.qualities[revision] = Quality()
        self.disk.sealed.add(bundle_of(revision))
        self.disk.pointer = Installed(revision, source_of(revision), bundle_of(revision))
        self.server.start()

    def start_updater(self) -> None:
        """A new life of the updater: it knows what the journal says."""
        record = SimJournal(self.disk).load(MODEL) or ModelRecord(MODEL)
        self.life = UpdaterLife(record, record, before=self.clock.monotonic())

    def stop_updater(self) -> None:
        """Asked to stop, it writes that down."""
        if self.life.has_begun:
            SimJournal(self.disk).write(stopped(self.life.record), ())

    def crash_server(self) -> None:
        """The server is killed and supervised back."""
        self.server.end(orderly=False)
        self.server.start()

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

    def command(self, kind: CommandKind, argument: str = "") -> None:
        """An operator asks for something and waits until it is done."""
        command = OperatorCommand(kind, argument)
        self.commands.append(command)
        for _ in range(200):
            if command not in self.commands:
                return
            self.tick()
        raise AssertionError(f"{kind} was never applied")

    # The updater's step.

    def tick(self, dies: str = "") -> Action:
        """One step; `dies` "before" its effect, or "after" it and before the record is written."""
        life, began = self.life, self.clock.monotonic()
        facts = self.facts()
        action = decide(life.record, facts, self.rules)
        if dies == "before":
            self.start_updater()
            return action
        result = perform(action, self.ports())
        if dies == "after":
            self.start_updater()
            return action
        record, events = apply_result(life.record, action, result, facts, self.rules)
        self._write(record, events, began, action)
        self.passes(action.seconds if isinstance(action, Wait) else 1.0 if isinstance(result, Failed) else 0.01)
        return action

    def facts(self) -> Facts:
        """What the updater sees now."""
        life = self.life
        return Facts(
            now=self.clock.now(),
            elapsed_seconds=self.clock.monotonic() - life.before if life.has_begun else 0.0,
            is_first=not life.has_begun,
            fresh_id=f"update-{next(self._ids)}",
            jitter=self.random.random(),
            server=self.server.state(1.0) if self.server.is_up else None,
            pointer=self.disk.pointer if self.disk.pointer_is_readable else None,
            pointer_is_readable=self.disk.pointer_is_readable,
            golden=self.golden.facts(),
            sealed=self.store.sealed(),
            committed_converts_to=""
            if life.record.committed is None
            else self.store.converts_to(life.record.committed),
            command=self.commands[0] if self.commands else None,
        )

    def ports(self) -> Ports:
        """The simulated ports."""
        return Ports(self.hub, self.server, self.golden, self.store, self.converter, self.clock)

    def tick_until(self, stage: Stage, limit: int = 2000) -> None:
        """Step until a stage is entered."""
        for _ in range(limit):
            if self.stage is stage:
                return
            self.tick()
        raise AssertionError(f"{stage} was not reached: {self.stage}, {self.told()[-8:]}")

    def settle(self, seconds: float = 900.0) -> None:
        """Step until nothing is under way, and has not been for two polls."""
        ends, calm = self.clock.seconds + seconds, 0.0
        while self.clock.seconds < ends:
            before = self.clock.seconds
            action = self.tick()
            watch, hub = self.record.watch, self.record.hub
            is_looking = hub.state is BreakerState.CLOSED and watch.seconds_to_poll <= 2 * self.rules.poll_seconds
            is_calm = self.stage in (Stage.IDLE, Stage.HELD) and isinstance(action, Wait) and is_looking
            calm = calm + self.clock.seconds - before if is_calm or type(action).__name__ == "LookAtHub" else 0.0
            if calm > 2.5 * self.rules.poll_seconds:
                return
        raise AssertionError(f"it does not settle: {self.stage}, {self.told()[-8:]}")

    # What can be seen.

    @property
    def record(self) -> ModelRecord:
        """As the updater knows it."""
        return self.life.record

    @property
    def stage(self) -> Stage:
        """Where it stands."""
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

    def told(self) -> list[str]:
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
        """Other rules from now on."""
        self.rules = replace(self.rules, **changes)  # type: ignore[arg-type]

    def _write(self, record: ModelRecord, events: tuple[Event, ...], began: float, action: Action) -> None:
        life = self.life
        if events or not life.has_begun or is_worth_writing(life.written, record):
            try:
                SimJournal(self.disk).write(record, events)
            except OSError:
                return
            life.written = record
            self.floors.append(record.min_version)
        life.record, life.before, life.has_begun = record, began, True
        if isinstance(action, ApplyCommand):
            self.commands.pop(0)

    def _boots_from(self) -> str:
        pointer = self.disk.pointer
        is_there = self.disk.pointer_is_readable and pointer is not None and pointer.bundle_digest in self.disk.sealed
        return pointer.bundle_digest if pointer is not None and is_there else ""
