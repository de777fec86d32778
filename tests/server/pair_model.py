"""The pair of slots explored breadth first: every event in every state that can be reached, with a caller or without.

The transitions are the shipped ones. Around them stands the smallest world that answers their effects: processes that
start, load, fail and die, one fallback file, and at most one caller, which waits in a slot, is handed over, or is held.
States that differ only in names, times and counters are one.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import reasons
from common.bundle import Bundle
from common.errors import Failed, HotslotError
from inference.server.model import messages as m
from inference.server.model import transitions
from inference.server.model.pair import (
    ANSWERING_ROLES,
    CPU_DEVICE,
    CpuFallbackRow,
    FallbackMove,
    Gap,
    Load,
    Pair,
    Role,
    SlotRecord,
    SlotState,
)
from inference.server.model.policy import DeviceRules, RespawnRules, ShortageAction, SlotRules
from inference.server.model.route import choose_handover_slot, choose_route
from inference.server.model.stats import StatsKey
from inference.server.model.step import Now
from inference.server.request import INTERNAL, NO_TAGS, RequestTags
from inference.server.scheduling.in_flight import Estimate

CARD = "cuda:0"
NOW, LATER = 1.0, 10.0  # every event is now; whatever is due is due later, until the explorer lets it be due
WALL = datetime(2030, 1, 1, tzinfo=UTC)
SLOTS = ("a", "b")
HELD = "held"  # where a caller is that waits for the CPU fallback's load
FAILURE = Failed("as explored")
BUNDLES = {
    revision: Bundle(f"sha256:{revision}", f"sha256:{revision}", revision, "scripted", "task", "float32", "1", ())
    for revision in ("r1", "r2")
}
RESPAWN = RespawnRules(first_seconds=5.0, cap_seconds=5.0, give_up=3)


def new_load(revision: str, device: str) -> Load:
    """A load as a command makes it."""
    return Load("new", BUNDLES[revision], Path("/bundle"), device, "", NOW)


@dataclass(frozen=True, slots=True)
class Caller:
    """One accepted request. Its past is not kept: whether the other slot has failed it already is left open."""

    at: str  # the slot that it was given to, or HELD
    lease: str = ""  # the other slot, if it holds a lease on that too
    is_tried: bool = False  # by the trial: the other slot answers what the trial fails


@dataclass(frozen=True, slots=True)
class World:
    """One state: the pair, and what is around it."""

    pair: Pair
    caller: Caller | None = None
    ending: frozenset[str] = frozenset()  # slots whose process was asked to end
    awaits: frozenset[str] = frozenset()  # slots that send LeaseOver
    copy: str = ""  # the slot that computes a copy of an answered request; empty: none does

    def is_leased(self, name: str) -> bool:
        """Whether the caller, or a copy, holds a lease on a slot."""
        return name == self.copy or (self.caller is not None and name in (self.caller.at, self.caller.lease))


@dataclass(frozen=True, slots=True)
class Setup:
    """A model's settings and how its server starts."""

    name: str
    device: str  # policy
    devices: tuple[str, ...]
    allow_cpu_fallback: bool
    standby: bool
    is_installed: bool
    is_fallen: bool = False

    @property
    def rules(self) -> SlotRules:
        """The rules of the transitions."""
        return SlotRules("shapes", DeviceRules(self.device, self.allow_cpu_fallback), RESPAWN, self.standby)

    def start(self) -> m.Boot:
        """The first event."""
        row = CpuFallbackRow("shapes", CARD, CPU_DEVICE, "", WALL, reasons.OUT_OF_MEMORY) if self.is_fallen else None
        return m.Boot(new_load("r1", "") if self.is_installed else None, row)


SETUPS = (
    Setup("card", CARD, (CARD, CPU_DEVICE), allow_cpu_fallback=True, standby=True, is_installed=True),
    Setup("fallen", CARD, (CARD, CPU_DEVICE), allow_cpu_fallback=True, standby=True, is_installed=True, is_fallen=True),
    Setup("card only", CARD, (CARD, CPU_DEVICE), allow_cpu_fallback=False, standby=True, is_installed=True),
    Setup("cpu, no standby", "cpu", (CPU_DEVICE,), allow_cpu_fallback=True, standby=False, is_installed=True),
    Setup("first install", CARD, (CARD, CPU_DEVICE), allow_cpu_fallback=True, standby=True, is_installed=False),
)


@dataclass(slots=True)
class Report:
    """What was found."""

    states: int = 0
    steps: int = 0
    violations: dict[str, str] = field(default_factory=dict)  # rule → the shortest way to its violation


class Violated(Exception):
    """A rule does not hold."""


def expect(rule: str, *, holds: bool) -> None:
    """Raise if a rule does not hold."""
    if not holds:
        raise Violated(rule)


def explore(
    setups: tuple[Setup, ...] = SETUPS, *, is_patient: bool = True, make: "type[Explorer] | None" = None
) -> Report:
    """Explore all states of the setups.

    Args:
        setups: where to start from.
        is_patient: goes on after a violation, to the end.
        make: the events; None: without shadows and canaries.
    """
    report = Report()
    seen: dict[SlotRules, dict[World, tuple[World | None, str]]] = {}
    for setup in setups:
        explorer, ways = (make or Explorer)(setup), seen.setdefault(setup.rules, {})
        first = explorer.normal(explorer.apply(World(Pair()), setup.start()))
        queue = deque([] if first in ways else [first])
        ways.setdefault(first, (None, f"{setup.name}: boot"))
        while queue and (is_patient or not report.violations):
            world = queue.popleft()
            for name, act in explorer.events(world):
                report.steps += 1
                try:
                    after = explorer.normal(act())
                    check_state(after)
                except Violated as broken:
                    report.violations.setdefault(str(broken), f"{way_to(ways, world)} → {name}")
                    continue
                if after not in ways:
                    ways[after] = (world, name)
                    queue.append(after)
    report.states = sum(map(len, seen.values()))
    return report


def way_to(ways: dict[World, tuple[World | None, str]], world: World) -> str:
    """The events that lead to a state."""
    names: list[str] = []
    at: World | None = world
    while at is not None:
        at, name = ways[at]
        names.insert(0, name)
    return " → ".join(names)


class Explorer:
    """The events of one setup, and the world that answers their effects."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.rules = setup.rules
        self.devices = tuple((device, "float32") for device in setup.devices)
        self._leased: tuple[World | None, Pair] = (None, Pair())

    # What may happen.

    def events(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        """Every event that can happen, by a name for people."""
        if world.pair.is_stopping:
            for name in SLOTS:
                if world.pair[name].has_process:
                    yield f"{name} ends", partial(self.die, world, name)
            return
        for name in SLOTS:
            yield from self._of_process(world, world.pair[name])
            yield from self._of_commands(world, world.pair[name])
        yield from self._of_time(world)
        yield from self._of_caller(world)

    def _of_process(self, world: World, slot: SlotRecord) -> Iterator[tuple[str, Callable[[], World]]]:
        name, apply = slot.name, self.apply
        if not slot.has_process:
            return
        yield f"{name} ends", lambda: self.die(world, name)
        if slot.state is not SlotState.RETIRING and slot.load is not None:
            yield f"{name} ends again", lambda: self.die(world, name, deaths=RESPAWN.give_up)
        if world.caller is not None and world.caller.at == name and slot.load is not None and slot.load.is_loaded:
            yield f"{name} ends of the caller's input", lambda: self.die(world, name, is_at_fault=True)
        if name in world.ending:
            return
        if slot.state is SlotState.STARTING:
            yield f"hello of {name}", lambda: apply(world, m.Hello(name, self.devices))
        if slot.state is SlotState.LOADING:
            device = slot.load.device if slot.load is not None else ""
            yield f"{name} is loaded", lambda: apply(world, m.Loaded(name, device, "float32", 0.1))
            for reason in ("LOAD_FAILED", reasons.OUT_OF_MEMORY):
                yield f"load of {name}: {reason}", partial(apply, world, m.LoadFailed(name, reason, "", FAILURE))
        if slot.state is SlotState.LOADED:
            if world.pair.fallback == name:
                yield f"{name} passes its self-test", lambda: apply(world, m.Proven(name))
                yield f"{name} fails its self-test", lambda: apply(world, m.SelfTestFailed(name, "NOT_FINITE"))
            yield f"self-test of {name}: {reasons.OUT_OF_MEMORY}", lambda: self.run_out_in_self_test(world, name)

    def run_out_in_self_test(self, world: World, name: str) -> World:
        """The two events that `requests` makes of it."""
        world = self.apply(world, m.SelfTestFailed(name, reasons.OUT_OF_MEMORY))
        return (
            self.apply(world, self.out_of_memory(world, name, is_probe=True)) if world.pair[name].is_loaded else world
        )

    def _of_commands(self, world: World, slot: SlotRecord) -> Iterator[tuple[str, Callable[[], World]]]:
        name, load_id = slot.name, slot.name
        if world.pair.free_slot() is slot:
            for revision, device in self._loads(world.pair):
                load = new_load(revision, device)
                yield f"load {revision} on {device}", partial(self.apply, world, m.LoadBundle(load))
        if slot.load is not None and slot.state is not SlotState.RETIRING:
            yield f"activate {name}", lambda: self.command(world, m.Activate(load_id, LATER - NOW, ""))
            yield f"commit {name}", lambda: self.command(world, m.Commit(load_id, ""))
            yield f"retire {name}", lambda: self.command(world, m.Retire(load_id))

    def _loads(self, pair: Pair) -> Iterator[tuple[str, str]]:
        active = pair.active_slot
        held = None if active is None else active.load
        if held is None:
            yield "r1", transitions.default_device(pair, self.rules)
            return
        yield ("r2" if held.bundle.revision == "r1" else "r1"), held.device
        if held.device == CPU_DEVICE and CARD in self.setup.devices:
            yield held.bundle.revision, CARD  # the failback

    def _of_time(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        pair = world.pair
        if world.caller is None:
            yield "the server stops", lambda: self.apply(world, m.Stop())
        if pair.trial is not None and pair.trial.previous is not None:
            over = replace(world, pair=replace(pair, trial=replace(pair.trial, lease_ends=0.0)))
            yield "the trial lease runs out", lambda: self.apply(over, m.Tick())
        for slot in pair:
            if slot.respawn_at is not None:
                due = _with_slot(pair, replace(slot, respawn_at=0.0))
                yield f"the pause of {slot.name} is over", partial(self.apply, replace(world, pair=due), m.Tick())
        if pair.active is None and pair.gap is None and not any(slot.load for slot in pair):
            load = new_load("r1", "")
            yield "the committed bundle can be read again", lambda: self.apply(world, m.BootAgain(load))
        if pair.move.not_before:
            later = replace(world, pair=replace(pair, move=replace(pair.move, not_before=0.0)))
            yield "a fallback may be tried again", lambda: later

    def _of_caller(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        caller, pair = world.caller, world.pair
        if caller is None:
            yield "a caller asks", lambda: self.ask(world, 30.0)
            if pair.trial is not None:
                yield "a caller in a hurry asks", lambda: self.ask(world, 0.1)
            return
        yield "the caller is gone", lambda: self.settle(world)
        slot = None if caller.at == HELD else pair[caller.at]
        if slot is None or slot.load is None or not slot.load.is_loaded:
            return
        yield "the caller is answered", lambda: self.answer(world, caller)
        if pair.trial is not None and pair.trial.slot != slot.name:
            key = pair[pair.trial.slot].load
            ran_out = m.TrialRanOut(StatsKey("", "") if key is None else key.key)
            yield "the caller is answered after the trial ran out", lambda: self.answer(world, caller, ran_out)
        yield "the caller's request fails", lambda: self.fail(world, caller)
        for other_failed in (False, True):
            way = f"the caller's request: {reasons.OUT_OF_MEMORY}{', there too' if other_failed else ''}"
            yield way, partial(self.run_out, world, caller, other_failed=other_failed)
        yield f"{slot.name} is stuck", lambda: self.apply(world, m.Stuck(slot.name, ""))

    # The caller's way, as `requests` goes it.

    def ask(self, world: World, seconds: float, tags: RequestTags = NO_TAGS) -> World:
        """A request is routed."""
        estimate = Estimate(own=0.05, shared_call=0.05)
        dispatcher = SimpleNamespace(
            limit_of=lambda _: 2.0, cost=SimpleNamespace(is_known=True), estimate=lambda *_: estimate
        )
        slots: Any = {name: SimpleNamespace(dispatcher=dispatcher) for name in SLOTS}
        request: Any = SimpleNamespace(rows=1, flow=INTERNAL, deadline=NOW + seconds, tags=tags)
        decision = choose_route(world.pair, slots, request, NOW)
        if decision is None or world.pair[decision.slot].load is None:
            return world
        role = world.pair.role_of(decision.slot)
        expect("a caller is routed to a slot that answers", holds=role in ANSWERING_ROLES)
        is_tried = decision.previous is not None
        return replace(world, caller=Caller(decision.slot, decision.previous or "", is_tried))

    def answer(self, world: World, caller: Caller, ran_out: m.TrialRanOut | None = None) -> World:
        """Its slot has answered."""
        if ran_out is not None:
            world = self.apply(world, ran_out)
        return self.settle(self.apply(world, m.Proven(caller.at)))

    def fail(self, world: World, caller: Caller) -> World:
        """Its slot has failed it."""
        return self.hand_over(world, caller) if caller.is_tried else self.settle(world)

    def hand_over(self, world: World, caller: Caller) -> World:
        """The previous slot takes what the trial failed."""
        target = choose_handover_slot(world.pair, caller.at)
        is_on_trial = world.pair.role_of(caller.at) is Role.TRIAL and caller.is_tried
        expect("what a trial fails, its previous slot takes", holds=target is not None or not is_on_trial)
        if target is None:
            return self.settle(world)
        return self.move_caller(world, target.name, lease=caller.at)

    def run_out(self, world: World, caller: Caller, *, other_failed: bool) -> World:
        """Its slot had no memory for it."""
        name, other = caller.at, world.pair.other(caller.at).name
        event = self.out_of_memory(world, name, other_failed=other_failed)
        action, world = event.action, self.apply(world, event)
        if action is ShortageAction.USE_OTHER_SLOT:
            if world.pair.role_of(name) is Role.PREVIOUS:
                return self.move_caller(world, other, lease=name)
            return self.hand_over(world, caller)
        if action is ShortageAction.REFUSE:
            return self.settle(world)
        return self.hold(world)

    def out_of_memory(
        self, world: World, name: str, *, is_probe: bool = False, other_failed: bool = False
    ) -> m.OutOfMemory:
        """The event of a slot that had no memory for an item."""
        pair, rules = world.pair, self.rules
        action = transitions.after_item(pair, name, NOW, rules, is_probe=is_probe, other_failed=other_failed)
        return m.OutOfMemory(name, action, new_load_id="cpu")

    def hold(self, world: World) -> World:
        """It waits for the CPU, without its leases: they would keep the slot that must be emptied first."""
        pair = world.pair
        load = None if pair.active_slot is None else pair.active_slot.load
        is_begun = pair.fallback is not None or pair.move.pending_load is not None
        is_there = load is not None and load.device == CPU_DEVICE
        expect("a caller's answer outranks a candidate: the CPU gets a slot", holds=is_begun or is_there)
        world = self.settle(world)
        target = world.pair.fallback or (world.pair.active if world.pair.move.pending_load is None else None)
        return replace(world, caller=Caller(target or HELD))

    def move_caller(self, world: World, target: str, lease: str = "") -> World:
        """Another slot gets it."""
        role = world.pair.role_of(target)
        expect("a request goes on only in a slot that answers", holds=role in ANSWERING_ROLES)
        return replace(world, caller=Caller(target, lease if lease != target else ""))

    def settle(self, world: World) -> World:
        """The caller has its outcome, or is gone: its leases end."""
        expect("what is accepted is settled once", holds=world.caller is not None)
        return self.end_leases(replace(world, caller=None))

    def end_leases(self, world: World) -> World:
        """Leases have ended: slots that wait for it are told."""
        for name in sorted(world.awaits):
            if not world.is_leased(name):
                world = self.apply(replace(world, awaits=world.awaits - {name}), m.LeaseOver(name))
        return world

    # The end of a process, and a command.

    def die(self, world: World, name: str, *, deaths: int = 0, is_at_fault: bool = False) -> World:
        """The process of a slot ends, after so many others; of the caller's input, for the second time, if at fault."""
        pair = _with_slot(world.pair, replace(world.pair[name], deaths_in_row=deaths))
        world = replace(world, pair=pair, ending=world.ending - {name}, awaits=world.awaits - {name})
        if world.caller is not None and world.caller.lease == name:
            world = replace(world, caller=replace(world.caller, lease=""))
        if world.copy == name:
            world = replace(world, copy="")
        if is_at_fault:
            world = self.settle(world)  # it is answered POISON_INPUT
        has_requests = world.caller is not None and world.caller.at == name
        ended = m.ProcessEnded(name, "", is_input_at_fault=is_at_fault, has_requests=has_requests)
        return self.apply(world, ended)

    def command(self, world: World, event: m.Event) -> World:
        """A command, which may be refused; then nothing changes."""
        try:
            return self.apply(world, event)
        except HotslotError:
            return world

    # One transition, its effects, and the rules.

    def apply(self, world: World, event: m.Event) -> World:
        """Apply an event, perform its effects on the world, and check every rule."""
        before = self._leased_pair(world)
        pair, effects = transitions.apply(before, event, Now(NOW, WALL), self.rules)
        after = replace(world, pair=pair)
        for effect in effects:
            after = self.perform(after, effect, before, event)
        check_step(before, after, event)
        return after

    def _leased_pair(self, world: World) -> Pair:
        """The pair that knows the leases, computed once for the events of one world."""
        if self._leased[0] is not world:
            pair = world.pair
            for name in SLOTS:
                if pair[name].is_leased != world.is_leased(name):
                    pair = pair.with_leased(name, is_leased=world.is_leased(name))
            self._leased = (world, pair)
        return self._leased[1]

    def perform(self, world: World, effect: m.Effect, before: Pair, event: m.Event) -> World:
        """What an effect does to the world; some are forbidden in some states."""
        match effect:
            case m.EndProcess(name):
                expect("no process with a live lease is ended", holds=not world.is_leased(name))
                return replace(world, ending=world.ending | {name})
            case m.AwaitLeases(name):
                return replace(world, awaits=world.awaits | {name})
            case m.Kill(name):
                is_broken = isinstance(event, m.Stuck | m.Stop | m.LoadFailed)
                is_loaded = before[name].is_loaded
                expect("no model that can answer is killed", holds=is_broken or not is_loaded)
                return replace(world, ending=world.ending | {name})
            case m.Spawn(name):
                had_process = before[name].has_process and not isinstance(event, m.ProcessEnded)
                expect("a slot has one process", holds=not had_process)
            case m.SubmitAwaitingCpu(name):
                if world.caller is not None and world.caller.at == HELD:
                    return self.move_caller(world, name)
            case m.MoveRequests(name, target):
                return self._move_from(world, name, target)
            case m.SaveFallback(row):
                expect(
                    "the fallback file says what the pair says", holds=(row is None) or world.pair.cpu_fallback == row
                )
        return world

    def _move_from(self, world: World, name: str, target: str | None) -> World:
        caller = world.caller
        if caller is None or caller.at != name:
            return world
        if target is None or world.pair[target].load is None:
            expect("what waits in a gap is answered by the model that returns", holds=world.pair.gap is None)
            return self.settle(world)
        return self.move_caller(world, target, lease=caller.lease)

    def normal(self, world: World) -> World:
        """The state without names, times and counters."""
        pair = world.pair
        slots = [_normal_slot(slot, self.devices) for slot in pair]
        pending = None if pair.move.pending_load is None else _normal_load(pair.move.pending_load, "pending")
        trial = pair.trial
        if trial is not None and trial.lease_ends != LATER:
            trial = replace(trial, lease_ends=LATER)
        judged = None if pair.shadow is None else pair.slot_holding(pair.shadow.load_id)
        shadow = None if judged is None or pair.shadow is None else replace(pair.shadow, load_id=judged.name)
        row = None if pair.cpu_fallback is None else replace(pair.cpu_fallback, bundle_digest="", reason="")
        move = FallbackMove(pending, 0.0, 0.0, LATER if pair.move.not_before > NOW else 0.0)
        pair = replace(
            pair,
            a=slots[0],
            b=slots[1],
            trial=trial,
            shadow=shadow,
            last_trial=None,
            generation=1,
            cpu_fallback=row,
            move=move,
            gap=_normal_gap(pair),
        )
        return _symmetric(replace(world, pair=pair))


def check_step(before: Pair, after: World, event: m.Event) -> None:
    """The rules of one step."""
    pair = after.pair
    is_swap = pair.active != before.active and not isinstance(event, m.Boot)
    grows = pair.generation > before.generation if is_swap else pair.generation >= before.generation
    expect("the generation grows with every swap", holds=grows)
    net = before.previous_of_trial
    if net is not None and net.is_loaded and getattr(event, "slot", "") == before.active:
        answers = pair.answering_slot() is not None
        expect("a failing trial never leaves nobody answering", holds=answers)
    trial = before.trial
    if isinstance(event, m.Tick) and trial is not None and trial.previous is not None and trial.lease_ends < NOW:
        is_back = pair.trial is None and pair.active == trial.previous
        expect("a trial lease that runs out puts the previous slot back", holds=is_back)
    if isinstance(event, m.OutOfMemory) and pair.move.pending_load is not None:
        state = pair.other(pair.active or "a").state
        expect("what holds the slot of the fallback is on its way out", holds=state is SlotState.RETIRING)


def check_pair(pair: Pair) -> None:
    """The rules of every state that need only the pair."""
    expect("at most one slot is active", holds=pair.active is None or pair.active != pair.fallback)
    expect("the trial is the active slot", holds=pair.trial is None or pair.trial.slot == pair.active)
    if pair.is_stopping:
        return
    net = pair.previous_of_trial
    has_net = net is None or (net.load is not None and net.name != pair.active)
    expect("a trial keeps its previous slot", holds=has_net)
    if pair.active_slot is not None:
        expect("the active slot answers, loads, or waits to", holds=_is_on_its_way(pair.active_slot))
    if pair.fallback is not None:
        expect("the fallback's slot answers, loads, or waits to", holds=_is_on_its_way(pair[pair.fallback]))


def check_state(world: World) -> None:
    """The rules of every state."""
    pair, caller = world.pair, world.caller
    check_pair(pair)
    if pair.is_stopping:
        return
    for slot in pair:
        is_on_its_way_out = slot.name in world.ending or (slot.name in world.awaits and world.is_leased(slot.name))
        holds = slot.state is not SlotState.RETIRING or is_on_its_way_out
        expect("what retires ends when its leases have ended", holds=holds)
    if caller is not None and caller.at == HELD:
        expect("what is held waits for a load", holds=pair.move.pending_load is not None)
    elif caller is not None:
        is_returning = pair.gap is not None and pair.gap.is_over
        expect("a caller waits in no slot without a model", holds=pair[caller.at].load is not None or is_returning)


def _is_on_its_way(slot: SlotRecord) -> bool:
    """Whether a slot answers, loads, or will begin to by itself."""
    if slot.load is None:
        return False
    if slot.state is SlotState.FAILED:
        return slot.respawn_at is not None
    return slot.state in (SlotState.STARTING, SlotState.LOADING, SlotState.LOADED)


def _with_slot(pair: Pair, slot: SlotRecord) -> Pair:
    return replace(pair, a=slot) if slot.name == "a" else replace(pair, b=slot)


def _normal_slot(slot: SlotRecord, devices: tuple[tuple[str, str], ...]) -> SlotRecord:
    load = None if slot.load is None else _normal_load(slot.load, slot.name)
    due = None if slot.respawn_at is None else LATER
    return SlotRecord(slot.name, slot.state, load, respawn_at=due, devices=devices)


def _normal_load(load: Load, load_id: str) -> Load:
    times = load.begun_at or load.loaded_at or load.load_seconds
    if load.load_id == load_id and not (times or load.precision or load.is_proven):
        return load
    return replace(load, load_id=load_id, begun_at=0.0, loaded_at=0.0, load_seconds=0.0, precision="", is_proven=False)


def _normal_gap(pair: Pair) -> Gap | None:
    gap = pair.gap
    return None if gap is None else replace(gap, load=_normal_load(gap.load, "gap"), lease_ends=LATER)


def _symmetric(world: World) -> World:
    """The same state with the active slot called a, and its bundle called r1."""
    if world.pair.active == "b":
        world = _with_slots_swapped(world)
    active = world.pair.active_slot
    known = world.pair.gap.load if active is None and world.pair.gap is not None else None
    known = active.load if active is not None else known
    if known is None or known.bundle.revision == "r1":
        return world
    return _with_revisions_swapped(world)


def _with_slots_swapped(world: World) -> World:
    name_of = {"a": "b", "b": "a", "": "", None: None, HELD: HELD}
    pair, caller, trial, shadow = world.pair, world.caller, world.pair.trial, world.pair.shadow
    slots = []
    for slot in (pair.b, pair.a):
        name = name_of[slot.name] or ""
        slots.append(replace(slot, name=name, load=None if slot.load is None else replace(slot.load, load_id=name)))
    if trial is not None:
        trial = replace(trial, slot=name_of[trial.slot] or "", previous=name_of[trial.previous])
    pair = replace(
        pair,
        a=slots[0],
        b=slots[1],
        active=name_of[pair.active],
        previous=name_of[pair.previous],
        fallback=name_of[pair.fallback],
        trial=trial,
        shadow=None if shadow is None else replace(shadow, load_id=name_of[shadow.load_id] or ""),
    )
    if caller is not None:
        caller = replace(caller, at=name_of[caller.at] or "", lease=name_of[caller.lease] or "")
    ending, awaits = (frozenset(name_of[name] or "" for name in group) for group in (world.ending, world.awaits))
    return World(pair, caller, ending, awaits, name_of[world.copy] or "")


def _with_revisions_swapped(world: World) -> World:
    def swap(load: Load | None) -> Load | None:
        return None if load is None else replace(load, bundle=BUNDLES["r2" if load.bundle.revision == "r1" else "r1"])

    pair = world.pair
    slots = [replace(slot, load=swap(slot.load)) for slot in pair]
    move = replace(pair.move, pending_load=swap(pair.move.pending_load))
    load = None if pair.gap is None else swap(pair.gap.load)
    gap = None if pair.gap is None or load is None else replace(pair.gap, load=load)
    return replace(world, pair=replace(pair, a=slots[0], b=slots[1], move=move, gap=gap))


def main() -> int:
    """Explore, then show that each mutation of the shipped transitions is noticed."""
    from tests.server import pair_mutations  # noqa: PLC0415  it imports this module

    write = sys.stdout.write
    began = time.process_time()
    report = explore()
    write(f"{report.states} states, {report.steps} steps, {time.process_time() - began:.1f} s\n")
    for rule, way in report.violations.items():
        write(f"  VIOLATED {rule}\n    {way}\n")
    unnoticed = 0
    for name, mutation in pair_mutations.ALL.items():
        with mutation():
            rules = sorted(explore(is_patient=False).violations)
        unnoticed += not rules
        write(f"mutation {name!r}: {'; '.join(rules) or 'NOT NOTICED'}\n")
    return 1 if report.violations or unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
