"""The pair of slots explored with shadows and canaries: the events of `pair_model`, and those that change traffic.

The percentage of a canary is none, some or all; a request belongs to the part that it names or that its key falls in. A
copy is a lease on the second slot that no caller waits for.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

from common import reasons
from inference.server.model import messages as m
from inference.server.model import route, transitions
from inference.server.model.gap import GapStep
from inference.server.model.pair import CPU_DEVICE, Pair, Role, ShadowPolicy, SlotRecord, SlotState
from inference.server.model.policy import ShortageAction
from inference.server.model.step import Step
from inference.server.request import RequestTags
from tests.server.pair_model import BUNDLES, CARD, LATER, NOW, SETUPS, Explorer, Setup, World, expect, explore

NONE, SOME, EVERY = 0.0, 50.0, 100.0
COPY_ALL = ShadowPolicy(1.0)
# Explored by `make test`; all others, those with a CPU fallback too, by this module's `main`.
SMALL_SETUPS = (
    Setup("first, card only", CARD, (CARD, CPU_DEVICE), allow_cpu_fallback=False, standby=True, is_installed=False),
)


def find_key(digest: str, *, is_inside: bool) -> RequestTags:
    """A key that belongs to the part of a canary of 50 percent, or does not."""
    keys = (str(number) for number in range(1000))
    place = next(key for key in keys if (route.locate(digest, key) * EVERY < SOME) == is_inside)
    return RequestTags("id", routing_key=place)


TAGS = {
    (revision, inside): find_key(f"sha256:{revision}", is_inside=inside)
    for revision in BUNDLES
    for inside in (True, False)
}


class TrafficExplorer(Explorer):
    """Adds the events of shadows and canaries."""

    def events(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        """See `Explorer`."""
        yield from super().events(world)
        if world.pair.is_stopping:
            return
        for slot in world.pair:
            yield from self._of_traffic(world, slot)
        yield from self._of_copy(world)

    def _of_traffic(self, world: World, slot: SlotRecord) -> Iterator[tuple[str, Callable[[], World]]]:
        name = slot.name
        if slot.load is None or not slot.is_loaded:
            return
        yield f"shadow {name}", lambda: self.command(world, m.SetShadow(name, COPY_ALL, ""))
        for percent in (NONE, SOME, EVERY):
            yield f"{percent:.0f} percent for {name}", partial(self.command, world, m.SetPercent(name, percent, ""))
        begin = m.Activate(name, LATER - NOW, "", SOME, COPY_ALL)
        yield f"activate {name} as a canary with a shadow", lambda: self.command(world, begin)

    def _of_caller(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        yield from super()._of_caller(world)
        pair = world.pair
        if world.caller is not None or pair.trial is None or pair.trial.previous is None:
            return
        load = pair[pair.trial.slot].load
        if load is None:
            return
        revision = load.bundle.revision
        for is_inside, part in ((True, "the canary's part"), (False, "the other part")):
            tags = TAGS[revision, is_inside]
            yield f"a caller of {part} asks", partial(self.ask_as, world, tags, is_inside=is_inside)
        for version in (route.STABLE, route.CANARY):
            yield f"a caller asks for {version}", partial(self.ask_by_name, world, version)

    def ask_as(self, world: World, tags: RequestTags, *, is_inside: bool) -> World:
        """A request without a version, whose key is inside or outside of half of the keys."""
        pair, after = world.pair, self.ask(world, 30.0, tags)
        trial, net = pair.trial, pair.previous_of_trial
        if trial is None or net is None or after.caller is None:
            return after
        is_for_canary = trial.percent == EVERY or (trial.percent == SOME and is_inside)
        both = pair[trial.slot].is_loaded and net.is_loaded
        holds = not both or after.caller.at == (trial.slot if is_for_canary else net.name)
        expect("a percentage says who gets the canary while both slots answer", holds=holds)
        return after

    def ask_by_name(self, world: World, version: str) -> World:
        """A request that names its version."""
        pair, after = world.pair, self.ask(world, 30.0, RequestTags("id", version=version))
        trial = pair.trial
        if trial is not None and after.caller is not None:
            is_right = after.caller.at == (trial.previous if version == route.STABLE else trial.slot)
            is_down = version == route.CANARY and not pair[trial.slot].is_loaded
            expect("who names a version gets it while it answers", holds=is_right or is_down)
            needs_help = after.caller.at == trial.slot
            expect("a canary's caller is helped out", holds=after.caller.is_tried or not needs_help)
        return after

    def _of_copy(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        compared = world.pair.compared_slots()
        if not world.copy:
            for slot in compared or ():
                if slot.is_loaded:
                    yield f"{slot.name} gets a copy", partial(self.begin_copy, world, slot.name)
            return
        name = world.copy
        if world.pair[name].is_loaded:
            yield "the copy is answered", lambda: self.end_copy(self.apply(world, m.Proven(name)))
            yield f"the copy: {reasons.OUT_OF_MEMORY}", lambda: self.run_out_of_copy(world)
        yield "the copy is given up", lambda: self.end_copy(world)

    def begin_copy(self, world: World, name: str) -> World:
        """A copy is sent to a slot; nobody's request is."""
        role = world.pair.role_of(name)
        known = (Role.CANDIDATE, Role.TRIAL, Role.PREVIOUS, Role.ACTIVE)
        expect("a copy goes to a slot that is compared", holds=role in known)
        return replace(world, copy=name)

    def end_copy(self, world: World) -> World:
        """The copy has its outcome: its lease ends."""
        return self.end_leases(replace(world, copy=""))

    def run_out_of_copy(self, world: World) -> World:
        """The second slot had no memory for a copy."""
        event = self.out_of_memory(world, world.copy, is_probe=True)
        is_active = world.pair.role_of(world.copy) is Role.ACTIVE
        expect("a copy moves no model", holds=event.action is ShortageAction.REFUSE or is_active)
        return self.end_copy(self.apply(world, event))

    def apply(self, world: World, event: m.Event) -> World:
        """See `Explorer`."""
        after = super().apply(world, event)
        check_traffic(world.pair, after.pair, event)
        return after


def check_traffic(before: Pair, after: Pair, event: m.Event) -> None:
    """The rules of shadows and canaries."""
    shadow, trial = after.shadow, after.trial
    slot = None if shadow is None else after.slot_holding(shadow.load_id)
    role = None if slot is None else after.role_of(slot.name)
    holds = shadow is None or role in (Role.CANDIDATE, Role.TRIAL)
    expect("a shadow ends with its load's trial or candidacy", holds=holds)
    if trial is not None and before.trial is None:
        is_new = shadow is None or shadow.policy is getattr(event, "shadow", None)
        expect("a trial is compared anew", holds=is_new)
    if trial is not None and trial.previous is None:
        expect("a first install gets every request", holds=trial.percent == EVERY and shadow is None)
    if isinstance(event, m.SetPercent | m.SetShadow):
        expect("traffic changes neither slots nor roles", holds=describe(before) == describe(after))
    if trial is not None and trial.percent < EVERY and after.previous_of_trial is not None:
        net = after.previous_of_trial
        answers = after.answering_slot()
        expect("beside a canary the stable version is the one that answers", holds=not net.is_loaded or answers is net)


def describe(pair: Pair) -> list[object]:
    """What each slot holds and is for, and whose answers it helps out."""
    return [(slot.state, slot.load, pair.role_of(slot.name)) for slot in pair] + [pair.active, pair.previous]


# Defences taken out.


@contextlib.contextmanager
def shadow_outlives_its_load() -> Iterator[None]:
    """A shadow is not forgotten when its load is gone."""
    with patch.object(Step, "end_shadow_without_load", lambda _: None):
        yield


@contextlib.contextmanager
def percentage_of_a_first_install() -> Iterator[None]:
    """A first install gets a part of the requests; nobody answers the others."""
    shipped = transitions.HANDLERS[m.Activate]

    def activate(step: Any, event: m.Activate) -> None:  # noqa: ANN401  a transition in the making
        shipped(step, event)
        if step.pair.trial is not None and event.percent is not None:
            step.change(trial=replace(step.pair.trial, percent=event.percent))

    with patch.dict(transitions.HANDLERS, {m.Activate: activate}):
        yield


@contextlib.contextmanager
def comparison_goes_on_in_the_trial() -> Iterator[None]:
    """What was compared of the candidate counts for its trial."""
    begin = Step.begin_trial

    def begin_trial(self: Step, name: str, lease_ends: float, transaction_id: str) -> None:
        shadow = self.pair.shadow
        begin(self, name, lease_ends, transaction_id)
        self.change(shadow=shadow)

    with patch.object(Step, "begin_trial", begin_trial):
        yield


@contextlib.contextmanager
def percentage_ignored() -> Iterator[None]:
    """A canary gets all requests."""
    with patch.object(route, "is_for_canary", lambda *_: True):
        yield


@contextlib.contextmanager
def canary_answers_first() -> Iterator[None]:
    """The slot that health and self-tests look at is the canary's."""
    with patch.object(Pair, "is_canary", property(lambda _: False)):
        yield


@contextlib.contextmanager
def percentage_swaps() -> Iterator[None]:
    """All percent make the canary final."""

    def set_percent(step: Step, event: m.SetPercent) -> None:
        trial = step.pair.trial
        if trial is not None and event.percent == EVERY:
            step.change(previous=None)
        elif trial is not None:
            step.change(trial=replace(trial, percent=event.percent))

    with patch.dict(transitions.HANDLERS, {m.SetPercent: set_percent}):
        yield


@contextlib.contextmanager
def copies_count_as_callers() -> Iterator[None]:
    """A copy without memory is handed over, or moves the model, as a caller's request."""
    decide = transitions.after_item

    def after_item(*arguments: object, **named: object) -> ShortageAction:
        return decide(*arguments, **{**named, "is_probe": False})  # type: ignore[arg-type]

    with patch.object(transitions, "after_item", after_item):
        yield


@contextlib.contextmanager
def copies_have_no_lease() -> Iterator[None]:
    """A slot is ended while it computes a copy."""

    def empty_slot(self: Step, name: str, detail: str) -> None:
        self.change_slot(name, is_leased=False)
        _empty_slot(self, name, detail)

    with patch.object(Step, "empty_slot", empty_slot):
        yield


_empty_slot = Step.empty_slot

MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "shadow outlives its load": shadow_outlives_its_load,
    "percentage of a first install": percentage_of_a_first_install,
    "comparison goes on in the trial": comparison_goes_on_in_the_trial,
    "percentage ignored": percentage_ignored,
    "canary answers first": canary_answers_first,
    "percentage swaps": percentage_swaps,
    "copies count as callers": copies_count_as_callers,
    "copies have no lease": copies_have_no_lease,
}


class BridgeExplorer(Explorer):
    """Adds the CPU bridge: the active model moves to the CPU, and the other revision is tried on the card."""

    def _loads(self, pair: Pair) -> Iterator[tuple[str, str]]:
        yield from super()._loads(pair)
        held = None if pair.active_slot is None else pair.active_slot.load
        if held is not None and held.device == CARD and CPU_DEVICE in self.setup.devices:
            yield held.bundle.revision, CPU_DEVICE
        if held is not None and held.device == CPU_DEVICE and CARD in self.setup.devices:
            yield ("r2" if held.bundle.revision == "r1" else "r1"), CARD


class BridgeTrafficExplorer(BridgeExplorer, TrafficExplorer):
    """The bridge with shadows and canaries."""


class GapExplorer(Explorer):
    """Adds commands that unload the active model and leave a gap, and the lease of the gap."""

    def events(self, world: World) -> Iterator[tuple[str, Callable[[], World]]]:
        """See `Explorer`."""
        yield from super().events(world)
        pair = world.pair
        if pair.is_stopping:
            return
        active = pair.active_slot
        if active is not None and active.load is not None:
            begin = m.Retire(active.load.load_id, m.GapTerms(LATER - NOW, "gap"))
            yield "the active slot is retired", lambda: self.command(world, begin)
        if pair.gap is not None and not pair.gap.is_over:
            over = replace(world, pair=replace(pair, gap=replace(pair.gap, lease_ends=0.0)))
            yield "the gap's lease runs out", lambda: self.apply(over, m.Tick())

    def _loads(self, pair: Pair) -> Iterator[tuple[str, str]]:
        if pair.active is None and pair.gap is not None:
            yield "r2", transitions.default_device(pair, self.rules)
        yield from super()._loads(pair)

    def apply(self, world: World, event: m.Event) -> World:
        """See `Explorer`."""
        after = super().apply(world, event)
        check_gap(world.pair, after.pair, event)
        return after


def check_gap(before: Pair, after: Pair, event: m.Event) -> None:
    """The rules of a gap."""
    gap, was = after.gap, before.gap
    if after.is_stopping:
        return
    if gap is not None and gap.is_over:
        is_clearing = any(slot.state is SlotState.RETIRING for slot in after)
        expect("a gap that is over waits only for what leaves the device", holds=is_clearing and after.active is None)
    if was is None or gap is not None:
        overdue = isinstance(event, m.Tick) and gap is not None and gap.lease_ends < NOW and not gap.is_over
        expect("nothing is left unanswered after the lease of a gap", holds=not overdue or is_answering(after))
        return
    active = after.active_slot
    is_back = active is not None and active.digest == was.load.bundle.bundle_digest
    expect("a gap ends with a commit or the unloaded model", holds=is_back or isinstance(event, m.Commit))
    if active is not None and not isinstance(event, m.Commit):
        is_alone = after.other(active.name).load is None
        holds = is_alone or before[active.name].load is not None  # the updater has loaded it again itself
        expect("the unloaded model has its device to itself", holds=holds)


def is_answering(pair: Pair) -> bool:
    """Whether a slot can answer."""
    return pair.answering_slot() is not None


# The bridge's own setups: without a CPU fallback, which `SETUPS` have; with it, by `main`.
BRIDGE_SETUPS = (SETUPS[2],)


@contextlib.contextmanager
def other_device_is_no_previous() -> Iterator[None]:
    """A trial on another device than the active slot's has no previous slot."""
    begin = Step.begin_trial

    def begin_trial(self: Step, name: str, lease_ends: float, transaction_id: str) -> None:
        active, load = self.pair.active_slot, self.pair[name].load
        begin(self, name, lease_ends, transaction_id)
        held = None if active is None else active.load
        if held is not None and load is not None and held.device != load.device and self.pair.trial is not None:
            self.change(trial=replace(self.pair.trial, previous=None), previous=None)

    with patch.object(Step, "begin_trial", begin_trial):
        yield


@contextlib.contextmanager
def committed_device_is_kept() -> Iterator[None]:
    """A commit retires the slot that is on the card, whatever is active."""
    commit = transitions.HANDLERS[m.Commit]

    def commit_and_empty(step: Any, event: m.Commit) -> None:  # noqa: ANN401  a transition in the making
        commit(step, event)
        for slot in step.pair:
            if slot.load is not None and slot.load.device == CARD and slot.is_loaded:
                step.empty_slot(slot.name, "moved")

    with patch.dict(transitions.HANDLERS, {m.Commit: commit_and_empty}):
        yield


@contextlib.contextmanager
def gap_without_lease() -> Iterator[None]:
    """Nothing ends a gap."""
    with patch.object(GapStep, "end_overdue_gap", lambda _: None):
        yield


@contextlib.contextmanager
def candidate_stays_in_the_gap() -> Iterator[None]:
    """The unloaded model is loaded beside a candidate that does not fit beside it."""
    with patch.object(GapStep, "_clear", lambda *_: None):
        yield


@contextlib.contextmanager
def return_is_forgotten() -> Iterator[None]:
    """What is in the way leaves the device, and nothing follows."""
    shipped = transitions.HANDLERS[m.ProcessEnded]

    def process_ended(step: Any, event: m.ProcessEnded) -> None:  # noqa: ANN401  a transition in the making
        with patch.object(GapStep, "return_from_gap", lambda self: self.pair.gap is not None and self.pair.gap.is_over):
            shipped(step, event)

    with patch.dict(transitions.HANDLERS, {m.ProcessEnded: process_ended}):
        yield


@contextlib.contextmanager
def waiting_requests_end_with_the_gap() -> Iterator[None]:
    """What waits for a trial is not moved to the model that returns."""
    shipped = GapStep.return_from_gap

    def return_from_gap(self: GapStep) -> bool:
        before, is_over = len(self.effects), shipped(self)
        moved = [effect for effect in self.effects[before:] if not isinstance(effect, m.MoveRequests)]
        self.effects[before:] = moved
        return is_over

    with patch.object(GapStep, "return_from_gap", return_from_gap):
        yield


@contextlib.contextmanager
def death_in_the_gap_ends_requests() -> Iterator[None]:
    """What a process held that ends before it is retired is moved to no model."""
    with patch.object(GapStep, "keep_requests", lambda self, _: self.return_from_gap()):
        yield


@contextlib.contextmanager
def trial_in_the_gap_is_retired_at_once() -> Iterator[None]:
    """What waits for its load is moved to no model."""
    shipped = transitions.HANDLERS[m.Retire]

    def retire(step: Any, event: m.Retire) -> None:  # noqa: ANN401  a transition in the making
        for slot in step.pair:
            step.change_slot(slot.name, is_leased=slot.is_leased and slot.is_loaded)
        shipped(step, event)

    with patch.dict(transitions.HANDLERS, {m.Retire: retire}):
        yield


GAP_MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "a gap without a lease": gap_without_lease,
    "the candidate stays in the gap": candidate_stays_in_the_gap,
    "the return is forgotten": return_is_forgotten,
    "waiting requests end with the gap": waiting_requests_end_with_the_gap,
    "a death in the gap ends requests": death_in_the_gap_ends_requests,
    "a trial in the gap is retired at once": trial_in_the_gap_is_retired_at_once,
}

BRIDGE_MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "another device is no previous": other_device_is_no_previous,
    "the card's slot is always retired": committed_device_is_kept,
}


def main() -> int:
    """Explore every setup, those with a CPU fallback too, with moves from the card to the CPU."""
    began = time.process_time()
    report = explore((*SMALL_SETUPS, *SETUPS), make=BridgeTrafficExplorer)
    sys.stdout.write(f"{report.states} states, {report.steps} steps, {time.process_time() - began:.1f} s\n")
    for rule, way in report.violations.items():
        sys.stdout.write(f"  VIOLATED {rule}\n    {way}\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
