"""Every crash of either process at every boundary, explored breadth first: `python -m tests.updater.core.crash_model`.

The model imports the shipped `refresh`, `decide` and `apply_result`; everything that is not a decision is the small
world of `crash_world`. From each reachable state all of this may happen: a step is taken; the updater dies before its
effect, or after it and before the record is written; the server crashes, or is stopped in good order, and starts again;
the power fails; a trial lease expires; callers send requests; a revision is published, or published again with other
content; operators send commands; a card runs out of memory under the active slot, and the open time of the device
breaker passes.

In each state the invariants are checked, and each state is followed without further faults until it rests: then what
serves is the committed one, no other load is left, and the newest good revision is committed unless a person has to
decide.
"""

import gc
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.updater.core import crash_mutations
from tests.updater.core.crash_effects import (
    cut_power,
    end_server,
    let_breaker_wait,
    run_out_of_memory,
    send_traffic,
    start_server,
)
from tests.updater.core.crash_journal import lose, restore, with_witness
from tests.updater.core.crash_rules import rest_violations, state_violations, step_violations
from tests.updater.core.crash_step import plain, step
from tests.updater.core.crash_world import (
    BRANCH,
    CARD,
    FIRST,
    OLDER,
    Budget,
    Card,
    Kind,
    Published,
    Server,
    World,
    forget_records,
    keep,
)
from updater.core.breaker import BreakerState
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import Installed, ModelRecord, Stage
from updater.core.rules import Rollout
from updater.core.versions import name_content
from updater.stages.commands import CommandResult
from updater.stages.transitions import Transition

MAX_SETTLE_STEPS = 120
_NOTHING = Budget()


@dataclass(slots=True)
class Report:
    """Result of an exploration."""

    states: int = 0
    edges: int = 0
    longest_settle: int = 0
    transitions: set[tuple[Stage, Stage]] = field(default_factory=set)  # between stages, as they were taken
    violations: dict[str, str] = field(default_factory=dict)  # rule → the shortest path to a violation


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of the updater, and the rules that it violates."""

    name: str
    after: World  # its effect is there, its record is not written
    written: World
    rules: list[str]


@dataclass(slots=True)
class _Undisturbed:
    """A world without a budget for faults, and the steps from it.

    No decision, effect or rule of a step reads the budget or what is still to be published: the step of this world is
    the step of every world that differs from it in these alone, and is computed once for all of them.
    """

    world: World
    step: _Step | None = None
    asked: dict[str, _Step | None] = field(default_factory=dict)  # by what an operator says
    ended: dict[bool, World] = field(default_factory=dict)  # by whether its server ended in good order
    violations: list[str] | None = None  # of the world where it comes to rest; None: not computed yet
    steps: int = 0  # until it rests

    def take(self) -> _Step:
        """Its step, computed once."""
        if self.step is None:
            decided, after, written = step(self.world)
            stages = (self.world.record.stage, written.record.stage)
            name = " to ".join(stages) if isinstance(decided, Transition) else type(decided).__name__
            self.step = _Step(name, after, written, step_violations(self.world, after, written))
        return self.step

    def ask(self, name: str) -> _Step | None:
        """The step that applies an operator's command, computed once; None if there is nothing to apply."""
        if name not in self.asked:
            self.asked[name] = _applied(self.world, name)
        return self.asked[name]

    def end(self, *, orderly: bool) -> World:
        """The world whose server has ended, computed once."""
        if orderly not in self.ended:
            self.ended[orderly] = end_server(self.world, orderly=orderly)
        return self.ended[orderly]


class _UndisturbedWorlds(dict[World, _Undisturbed]):
    """Every undisturbed world that was reached, once."""

    def __missing__(self, world: World) -> _Undisturbed:
        undisturbed = self[world] = _Undisturbed(world)
        return undisturbed


def explore(starts: list[World]) -> Report:
    """Visit every state that can be reached from these worlds."""
    gc.disable()  # nothing here becomes garbage
    try:
        return _explore(starts)
    finally:
        gc.enable()
        forget_records()


def _explore(starts: list[World]) -> Report:
    report = Report()
    reached_from: dict[World, tuple[str, World | None]] = {}
    undisturbed_worlds = _UndisturbedWorlds()
    queue: deque[World] = deque()
    for start in starts:
        reached_from.setdefault(start, (_title(start), None))
        queue.append(start)
    while queue:
        world = queue.popleft()
        undisturbed = undisturbed_worlds[world._replace(budget=_NOTHING, coming=())]
        violated = [*state_violations(world), *_violations_at_rest(undisturbed, undisturbed_worlds, report)]
        for name, after, rules in _successors(world, undisturbed):
            report.edges += 1
            violated += rules
            report.transitions.add((world.record.stage, after.record.stage))
            way = (name, world)
            if reached_from.setdefault(after, way) is way:
                queue.append(after)
        for rule in violated:
            report.violations.setdefault(rule, _path(world, reached_from))
    report.states = len(reached_from)
    return report


def all_worlds() -> list[World]:
    """First installs and updates, of every kind of revision, with budgets for faults."""
    worlds: list[World] = []
    for kind in Kind:
        if kind is Kind.CHANGED:
            continue
        faults = Budget(2 if kind in (Kind.GOOD, Kind.FAILING) else 1, server_deaths=1, server_stops=1, expiries=1)
        bad = Published("1.0.0", kind, "one")
        worlds.append(
            _first_install(
                bad, (Published("1.1.0", Kind.GOOD, "two"),), faults._replace(updater_deaths=1, server_deaths=2)
            )
        )
        worlds.append(_installed((Published("1.1.0", kind, "two"), Published("1.2.0", Kind.GOOD, "three")), faults))
        again = (Published("1.1.0", kind, "two"), Published("1.1.0", Kind.GOOD, "two again"))
        worlds.append(_installed(again, faults._replace(expiries=0)))
        worlds.append(_installed((Published("1.1.0", kind, "two"),), Budget(1, power_cuts=1)))
        if kind is Kind.CORRUPT:  # operators meet it as they meet one that is refused
            continue
        newer = (Published("1.1.0", Kind.GOOD, "two"), Published("1.2.0", kind, "three"))
        spoken = (("ROLLBACK", "UNQUARANTINE"), ("PAUSE", "RESUME"), ("UPDATE", "ROLLBACK"), ("APPROVE", "ROLLBACK"))
        worlds += [_installed(newer, Budget(1, 1, commands=commands)) for commands in spoken]
    rest = (_with_lost_journal(), _with_card(), _with_branch(), _with_import(), _with_rollouts())
    return worlds + [world for found in rest for world in found]


# What may happen.


def _successors(world: World, undisturbed: _Undisturbed) -> Iterator[tuple[str, World, list[str]]]:
    budget = world.budget
    taken = undisturbed.take()
    yield taken.name, taken.written._replace(budget=budget, coming=world.coming), taken.rules
    if budget.updater_deaths:
        spent = budget._replace(updater_deaths=budget.updater_deaths - 1)
        if world.has_begun:
            yield "updater dies before its step", world._replace(has_begun=False, budget=spent), []
        if taken.written.protected_writes != world.protected_writes and taken.written.witness is not None:
            lagging = taken.written._replace(
                witness=world.witness,
                condemned=world.condemned,
                least=world.least,
                has_begun=False,
                budget=spent,
                coming=world.coming,
            )
            yield "updater dies between journal and witness", lagging, []
        if taken.after != undisturbed.world:
            dead = taken.after._replace(has_begun=False, budget=spent, coming=world.coming)
            yield f"updater dies after {taken.name}", dead, step_violations(undisturbed.world, taken.after, dead)
    yield from _server_events(world, undisturbed)
    for name, after in lose(world):
        yield name, after, []
    if world.is_stopped:
        yield "the journal is made anew from the witness", restore(world), []
    if world.coming:
        new = world.coming[0]
        hub = (*(row for row in world.hub if row.revision != new.revision), new)
        yield f"{new.revision} ({new.kind}) is published", world._replace(hub=hub, coming=world.coming[1:]), []
    if budget.commands and world.has_begun and not world.is_stopped:
        yield from _command_events(world, undisturbed)


def _server_events(world: World, undisturbed: _Undisturbed) -> Iterator[tuple[str, World, list[str]]]:
    budget, server = world.budget, world.server
    if not server.is_up:
        yield "server starts", start_server(world), []
        return
    if budget.server_deaths:
        spent = budget._replace(server_deaths=budget.server_deaths - 1)
        yield "server crashes", undisturbed.end(orderly=False)._replace(budget=spent, coming=world.coming), []
    if budget.server_stops:
        spent = budget._replace(server_stops=budget.server_stops - 1)
        yield "server is stopped", undisturbed.end(orderly=True)._replace(budget=spent, coming=world.coming), []
    if budget.power_cuts:
        yield "the power fails", cut_power(world)._replace(budget=budget._replace(power_cuts=budget.power_cuts - 1)), []
    if server.on_trial and server.previous >= 0 and budget.expiries:
        spent = budget._replace(expiries=budget.expiries - 1)
        yield (
            "trial lease expires",
            world._replace(server=server.with_previous_active("LEASE_EXPIRED"), budget=spent),
            [],
        )
    if world.may_send:
        yield "callers send requests", send_traffic(world), []
    yield from _memory_events(world)


def _memory_events(world: World) -> Iterator[tuple[str, World, list[str]]]:
    """The card runs out under the active slot; the open time of the breaker passes, or the time of its probe."""
    budget, server, device = world.budget, world.server, world.record.device
    if budget.card_failures and server.serving_on == CARD and (server.previous >= 0 or not server.on_trial):
        spent = world._replace(budget=budget._replace(card_failures=budget.card_failures - 1))
        yield "the card runs out", run_out_of_memory(spent), []
    if budget.breaker_waits and device.state is BreakerState.OPEN and device.left_seconds > 0:
        spent = world._replace(budget=budget._replace(breaker_waits=budget.breaker_waits - 1))
        yield "the breaker has waited", let_breaker_wait(spent), []
    if budget.expiries and device.state is BreakerState.HALF_OPEN:
        late = keep(replace(world.record, device=replace(device, left_seconds=1.0)))  # over in the next step
        yield "the probe is late", world._replace(record=late, budget=budget._replace(expiries=budget.expiries - 1)), []


def _command_events(world: World, undisturbed: _Undisturbed) -> Iterator[tuple[str, World, list[str]]]:
    name, *rest = world.budget.commands
    spent = world.budget._replace(commands=tuple(rest))
    yield f"no {name.lower()}", world._replace(budget=spent), []
    applied = undisturbed.ask(name)
    if applied is not None:
        yield applied.name, applied.written._replace(budget=spent, coming=world.coming), applied.rules


def _applied(world: World, name: str) -> _Step | None:
    command = _command(world, name)
    if command is None:
        return None
    decided, after, written = step(world, command)
    if not isinstance(decided, CommandResult):
        return None
    is_back = name == "ROLLBACK" and written.record != plain(world.record)
    is_owed = written.must_wait_for_breaker and command.kind is not CommandKind.RESET_BREAKER
    allowed = world.allowed | ({command.argument} if name in ("APPROVE", "UNQUARANTINE") else set())
    written = written._replace(crashed=world.crashed or is_back, must_wait_for_breaker=is_owed, allowed=allowed)
    return _Step(f"operator: {name.lower()}", after, written, step_violations(world, after, written, is_command=True))


def _command(world: World, name: str) -> OperatorCommand | None:
    record = world.record
    if name == "UNQUARANTINE":
        return (
            OperatorCommand(CommandKind.UNQUARANTINE, record.quarantine[0].source_digest) if record.quarantine else None
        )
    if name == "APPROVE":
        return (
            OperatorCommand(CommandKind.APPROVE, record.under_way.source_digest) if record.stage is Stage.HELD else None
        )
    if name == "UPDATE":
        return OperatorCommand(CommandKind.UPDATE, world.hub[-1].revision)
    if name == "RESET":
        return OperatorCommand(CommandKind.RESET_BREAKER, "device")
    return OperatorCommand(CommandKind[name])


# At rest.


def _violations_at_rest(undisturbed: _Undisturbed, undisturbed_worlds: _UndisturbedWorlds, report: Report) -> list[str]:
    """Rules that are violated where an undisturbed world comes to rest."""
    violations = _settle(undisturbed, undisturbed_worlds) if undisturbed.violations is None else undisturbed.violations
    report.longest_settle = max(report.longest_settle, undisturbed.steps)
    return violations


def _settle(start: _Undisturbed, undisturbed_worlds: _UndisturbedWorlds) -> list[str]:
    """Follow an undisturbed world until it rests; all worlds on its path rest there as well."""
    way: list[_Undisturbed] = []
    undisturbed = start
    while undisturbed.violations is None and len(way) < MAX_SETTLE_STEPS:
        after = _undisturbed_step(undisturbed)
        if after == undisturbed.world:
            undisturbed.violations = list(rest_violations(after))
        else:
            way.append(undisturbed)
            undisturbed = undisturbed_worlds[after]
    violations = ["it never comes to rest"] if undisturbed.violations is None else undisturbed.violations
    for steps, passed in enumerate(reversed(way), undisturbed.steps + 1):
        passed.violations, passed.steps = violations, steps
    return violations


def _undisturbed_step(undisturbed: _Undisturbed) -> World:
    """One step of an undisturbed world: the server runs and callers send requests."""
    world = undisturbed.world
    if not world.server.is_up:
        return start_server(world)
    if world.is_stopped:
        return restore(world)
    if world.may_send:
        return send_traffic(world)
    after = undisturbed.take().written
    is_waiting = after.record.device.state is BreakerState.OPEN and after.record.device.left_seconds > 0
    # Where the next return fails too, its rest is to wait.
    return let_breaker_wait(after) if after == world and is_waiting and world.card is Card.GOOD else after


# Worlds and words.


def _with_lost_journal() -> Iterator[World]:
    """The journal may be deleted, or replaced by what it was at the beginning; the witness may miss a write."""
    for kind in (Kind.GOOD, Kind.REFUSED, Kind.FAILING):
        coming = (Published("1.1.0", kind, "two"), Published("1.2.0", Kind.GOOD, "three"))
        yield with_witness(_installed(coming, Budget(1, losses=1)))
        yield with_witness(_installed(coming[:1], Budget(1, server_deaths=1, losses=1)))


def _with_card() -> Iterator[World]:
    """A model that has fallen back to the CPU, and one that may."""
    newer = (Published("1.1.0", Kind.GOOD, "two"),)
    for card in Card:
        faults = Budget(1, server_deaths=1, server_stops=1, expiries=1, breaker_waits=1 if card is Card.GOOD else 2)
        yield _on_cpu_fallback(_installed((), faults), card)
        yield _on_cpu_fallback(_installed(newer, Budget(1, server_deaths=1, breaker_waits=1)), card)
        if card in (Card.FULL, Card.TIGHT):  # operators meet them as they meet one that is spiky
            continue
        for commands in (("PAUSE", "RESUME"), ("RESET", "RESET"), ("UPDATE", "ROLLBACK"), ("ROLLBACK", "UNQUARANTINE")):
            yield _on_cpu_fallback(_installed(newer, Budget(1, breaker_waits=1, commands=commands)), card)
    for kind in (Kind.GOOD, Kind.FAILING):
        coming = (Published("1.1.0", kind, "two"),)
        world = _installed(coming, Budget(1, card_failures=2, breaker_waits=1))
        yield world._replace(card=Card.GOOD, server=world.server.with_load(0, FIRST.bundle_digest, CARD))


def _with_rollouts() -> Iterator[World]:
    """A shadow before the trial, a canary, and a revision that changes the answers of callers."""
    faults = Budget(1, server_deaths=1, expiries=1)
    for rollout in Rollout:
        for kind in (Kind.GOOD, Kind.FAILING, Kind.CHANGED):
            if rollout is Rollout.TRIAL and kind is not Kind.CHANGED:
                continue
            coming = (Published("1.1.0", kind, "two"), Published("1.2.0", Kind.GOOD, "three"))
            yield _installed(coming, faults)._replace(rollout=rollout)
            if kind is Kind.FAILING:
                continue
            for commands in (("APPROVE", "ROLLBACK"), ("STEP", "PAUSE"), ("PROMOTE", "ROLLBACK")):
                if (kind is Kind.CHANGED) == ("APPROVE" in commands):
                    yield _installed(coming[:1], Budget(1, commands=commands))._replace(rollout=rollout)
        if rollout is not Rollout.TRIAL:
            yield _first_install(FIRST, (Published("1.1.0", Kind.GOOD, "two"),), Budget(1))._replace(rollout=rollout)


def _with_branch() -> Iterator[World]:
    """A model that follows a branch: five contents of every kind, of which one is the first again."""
    first = Published(BRANCH, Kind.GOOD, "a")
    for kind in (kind for kind in Kind if kind is not Kind.CHANGED):
        second, third = Published(BRANCH, kind, "b"), Published(BRANCH, Kind.GOOD, "c")
        coming = (second, third, first, Published(BRANCH, Kind.GOOD, "d"))
        yield _on_branch(first, coming, Budget(1, server_deaths=kind in (Kind.GOOD, Kind.FAILING)))
    again = (Published(BRANCH, Kind.GOOD, "b"), first)
    for commands in (
        ("APPROVE", "ROLLBACK"),
        ("ROLLBACK", "UNQUARANTINE"),
        ("UPDATE", "APPROVE"),
        ("UPDATE", "RESUME"),
    ):
        yield _on_branch(first, again, Budget(1, commands=commands))
    yield _first_install(first, again, Budget(1, server_deaths=1))._replace(follows_branch=True)


def _on_branch(first: Published, coming: tuple[Published, ...], budget: Budget) -> World:
    committed = Installed(name_content(BRANCH, first.source_digest), first.source_digest, first.bundle_digest)
    record = plain(ModelRecord("model", committed=committed, has_garbage=False))
    return _installed(coming, budget, first, committed)._replace(record=record, follows_branch=True)


def _with_import() -> Iterator[World]:
    """A model that was imported under a name that is no version; the hub has its content, or has not."""
    committed = Installed("lab", FIRST.source_digest, FIRST.bundle_digest)
    record = plain(ModelRecord("model", committed=committed, has_garbage=False))
    newer = Published("1.1.0", Kind.GOOD, "two")
    for hub, commands in (((OLDER, FIRST), ()), ((OLDER,), ()), ((OLDER,), ("APPROVE", "ROLLBACK"))):
        world = _installed((newer,), Budget(1, server_deaths=1, commands=commands), FIRST, committed)
        yield world._replace(record=record, hub=hub, is_imported=True)


def _on_cpu_fallback(world: World, card: Card) -> World:
    return world._replace(card=card, fallback=1, fallbacks=1, must_wait_for_breaker=True)


def _first_install(first: Published, coming: tuple[Published, ...], budget: Budget) -> World:
    return World(plain(ModelRecord("model")), (first,), coming, Server(), budget)


def _installed(
    coming: tuple[Published, ...], budget: Budget, first: Published = FIRST, committed: Installed | None = None
) -> World:
    committed = committed or Installed(FIRST.revision, FIRST.source_digest, FIRST.bundle_digest)
    record = plain(ModelRecord("model", committed=committed, min_version=FIRST.revision, has_garbage=False))
    server, sealed = Server(slots=(first.bundle_digest, ""), active=0), frozenset({first.bundle_digest})
    return World(record, (first,), coming, server, budget, committed, sealed, has_begun=True)


def _title(world: World) -> str:
    rows = ", ".join(f"{row.revision} {row.kind}" for row in (*world.hub, *world.coming))
    return f"[{'first install' if world.record.committed is None else 'installed'}: {rows}]"


def _path(world: World, reached_from: dict[World, tuple[str, World | None]]) -> str:
    names: list[str] = []
    here: World | None = world
    while here is not None:
        name, before = reached_from[here]
        names.append(f"{name} → {here.record.stage}" if before is not None else name)
        here = before
    return " · ".join(reversed(names))


def main() -> int:
    """Explore, then show that each mutation of the shipped functions is noticed."""
    tell = sys.stdout.write
    began = time.process_time()
    report = explore(all_worlds())
    seconds = time.process_time() - began
    tell(
        f"{report.states} states, {report.edges} steps, longest way to rest {report.longest_settle}, {seconds:.1f} s\n"
    )
    for rule, way in report.violations.items():
        tell(f"  VIOLATED {rule}\n    {way}\n")
    unnoticed = 0
    for name, mutation in crash_mutations.ALL.items():
        with mutation():
            rules = sorted(explore(crash_mutations.worlds(all_worlds(), name)).violations)
        unnoticed += not rules
        tell(f"mutation {name!r}: {'; '.join(rules) or 'NOT NOTICED'}\n")
    return 1 if report.violations or unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
