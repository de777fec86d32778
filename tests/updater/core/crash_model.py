"""Every crash of either process at every boundary, explored breadth first: `python -m tests.updater.core.crash_model`.

The model imports the shipped `decide` and `conclude`; everything that is not a decision is the small
world of `crash_world`. From each reachable state all of this may happen: a step goes through; the
updater dies before its effect, or after it and before the record is written; the front crashes, or is
stopped in good order, and comes back; a term runs out; callers come; a revision is published, or
published again with other content; an operator rolls back, holds, resumes, approves, releases, updates.

In each state the invariants are checked, and each is let settle without further faults: at rest what
serves is what is committed, no slot is left over, and the newest good revision is committed unless a
person has to decide.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.updater.core import crash_mutations
from tests.updater.core.crash_effects import boots, dies, perform
from tests.updater.core.crash_world import GOLDEN, NOW, RULES, Budget, Front, Kind, Published, World, seen
from updater import conclude as conclusions
from updater import decide as decisions
from updater.actions import Action, Enter, Wish, WishKind
from updater.breaker import Breaker, BreakerName
from updater.pipeline.versions import is_after, version_of
from updater.ports import Facts
from updater.record import HeldFor, Installed, ModelRecord, Stage

MAX_SETTLE_STEPS = 120
R1 = Published("1.0.0", Kind.GOOD, "one")


@dataclass(slots=True)
class Report:
    """What was found."""

    states: int = 0
    edges: int = 0
    longest_settle: int = 0
    violations: dict[str, str] = field(default_factory=dict)  # rule → the shortest way there


def explore(starts: list[World]) -> Report:
    """Visit everything that can happen from these worlds."""
    report = Report()
    came: dict[World, tuple[str, World | None]] = {}
    rests: dict[World, tuple[World, int] | None] = {}
    queue: deque[World] = deque()
    for start in starts:
        came.setdefault(start, (_title(start), None))
        queue.append(start)
    while queue:
        world = queue.popleft()
        broken = [*_broken(world), *_unrest(world, rests, report)]
        for name, after, wrong in _happenings(world):
            report.edges += 1
            broken += wrong
            if after not in came:
                came[after] = (name, world)
                queue.append(after)
        for rule in broken:
            report.violations.setdefault(rule, _way(world, came))
    report.states = len(came)
    return report


def all_worlds() -> list[World]:
    """First installs and updates, of every kind of revision, with what may go wrong beside."""
    worlds: list[World] = []
    for kind in Kind:
        faults = Budget(2 if kind in (Kind.GOOD, Kind.FAILING) else 1, front_deaths=1, front_stops=1, expiries=1)
        bad = Published("1.0.0", kind, "one")
        worlds.append(
            _first_install(
                bad, (Published("1.1.0", Kind.GOOD, "two"),), replace(faults, updater_deaths=1, front_deaths=2)
            )
        )
        worlds.append(_installed((Published("1.1.0", kind, "two"), Published("1.2.0", Kind.GOOD, "three")), faults))
        again = (Published("1.1.0", kind, "two"), Published("1.1.0", Kind.GOOD, "two again"))
        worlds.append(_installed(again, replace(faults, expiries=0)))
        if kind is Kind.CORRUPT:  # operators meet it as they meet one that is refused
            continue
        newer = (Published("1.1.0", Kind.GOOD, "two"), Published("1.2.0", kind, "three"))
        spoken = (("ROLLBACK", "RELEASE"), ("HOLD", "RESUME"), ("UPDATE", "ROLLBACK"), ("APPROVE", "ROLLBACK"))
        worlds += [_installed(newer, Budget(1, 1, wishes=wishes)) for wishes in spoken]
    return worlds


def step(world: World, wish: Wish | None = None) -> tuple[Action, World, World]:
    """One step of the updater.

    Returns:
        What was decided; the world after its effect, before the record is written; the world after that.
    """
    facts = facts_of(world, wish)
    action = decisions.decide(world.record, facts, RULES)
    after, result = perform(world, action)
    record, _ = conclusions.conclude(after.record, action, result, facts, RULES)
    return action, after, replace(after, record=plain(record), begun=True)


def facts_of(world: World, wish: Wish | None = None) -> Facts:
    """What the updater sees."""
    return Facts(
        now=NOW,
        elapsed_seconds=10.0,
        is_first=not world.begun,
        fresh_id="update",
        jitter=0.5,
        front=seen(world),
        pointer=world.pointer,
        golden=GOLDEN,
        sealed=world.sealed,
        wish=wish,
    )


def plain(record: ModelRecord) -> ModelRecord:
    """A record without what only counts or is only told: states that behave alike are one."""
    watch = replace(record.watch, seconds_to_look=0.0, looks=0, last_looked_at=None, newest="", message="")
    update = record.update
    if update is not None:
        update = replace(update, steps=0, stage_seconds=0.0, message="")
    return replace(
        record,
        watch=watch,
        update=update,
        hub=Breaker(BreakerName.HUB),
        activation=Breaker(BreakerName.ACTIVATION),
        device=Breaker(BreakerName.DEVICE),
        written_at=None,
        failure_ages=(),
        trouble=None,
        hold_reason="",
    )


# What may happen.


def _happenings(world: World) -> Iterator[tuple[str, World, list[str]]]:
    action, after, written = step(world)
    name = type(action).__name__ + (f" {action.stage}" if isinstance(action, Enter) else "")
    yield name, written, _wrong(world, after, written)
    budget = world.budget
    if budget.updater_deaths:
        spent = replace(budget, updater_deaths=budget.updater_deaths - 1)
        if world.begun:
            yield "updater dies before its step", replace(world, begun=False, budget=spent), []
        if after != world:
            dead = replace(after, begun=False, budget=spent)
            yield f"updater dies after {name}", dead, _wrong(world, after, dead)
    yield from _front_happenings(world)
    if world.coming:
        new = world.coming[0]
        hub = (*(row for row in world.hub if row.revision != new.revision), new)
        yield f"{new.revision} ({new.kind}) is published", replace(world, hub=hub, coming=world.coming[1:]), []
    if budget.wishes and world.begun:
        yield from _wished(world)


def _front_happenings(world: World) -> Iterator[tuple[str, World, list[str]]]:
    budget, front = world.budget, world.front
    if not front.is_up:
        yield "front comes back", boots(world), []
        return
    if budget.front_deaths:
        spent = replace(world, budget=replace(budget, front_deaths=budget.front_deaths - 1))
        yield "front crashes", dies(spent, orderly=False), []
    if budget.front_stops:
        spent = replace(world, budget=replace(budget, front_stops=budget.front_stops - 1))
        yield "front is stopped", dies(spent, orderly=True), []
    if front.on_trial and front.previous >= 0 and budget.expiries:
        spent = replace(world, budget=replace(budget, expiries=budget.expiries - 1))
        yield "term runs out", replace(spent, front=front.back("TERM_EXPIRED")), []
    if front.on_trial and not front.traffic:
        yield "callers come", replace(world, front=replace(front, traffic=True)), []


def _wished(world: World) -> Iterator[tuple[str, World, list[str]]]:
    name, *rest = world.budget.wishes
    spent = replace(world, budget=replace(world.budget, wishes=tuple(rest)))
    yield f"no {name.lower()}", spent, []
    wish = _wish(world, name)
    if wish is None:
        return
    action, after, written = step(spent, wish)
    if type(action).__name__ != "Obey":
        return
    is_back = name == "ROLLBACK" and written.record != plain(world.record)
    written = replace(written, crashed=world.crashed or is_back)
    yield f"operator: {name.lower()}", written, _wrong(world, after, written)


def _wish(world: World, name: str) -> Wish | None:
    record = world.record
    if name == "RELEASE":
        return Wish(WishKind.RELEASE_QUARANTINE, record.quarantine[0].source_digest) if record.quarantine else None
    if name == "APPROVE":
        return Wish(WishKind.APPROVE, record.under_way.source_digest) if record.stage is Stage.HELD else None
    if name == "UPDATE":
        return Wish(WishKind.UPDATE, world.hub[-1].revision)
    return Wish(WishKind[name])


# What must hold.


def _broken(world: World) -> Iterator[str]:
    """What is wrong with a state."""
    pointer, record, front = world.pointer, world.record, world.front
    if pointer is not None:
        if pointer.bundle_digest not in world.sealed:
            yield "the pointer names a bundle that is not there"
        if world.kind_of(pointer.bundle_digest) not in (Kind.GOOD, Kind.DOUBTED):
            yield "a bad model is committed"
    if record.committed is not None and record.committed.bundle_digest not in world.sealed:
        yield "what is committed is not on disk"
    if record.committed is not None and record.is_quarantined(record.committed.source_digest):
        yield "what is committed is in quarantine"
    if front.serving and world.kind_of(front.serving) in (Kind.CORRUPT, Kind.REFUSED):
        yield "callers meet what failed verification or its gate"
    if front.is_up and pointer is not None and not front.serving:
        yield "nothing answers"
    if not world.crashed:
        bad = {row.source_digest for row in (*world.hub, *world.coming, R1) if row.kind in (Kind.GOOD, Kind.DOUBTED)}
        if any(row.source_digest in bad for row in record.quarantine):
            yield "a good revision is in quarantine though nothing has crashed"


def _wrong(before: World, effect: World, after: World) -> list[str]:
    """What is wrong with a step."""
    rules: list[str] = []
    record = before.record
    floors = (record.floor, after.record.floor)
    if floors[0] != floors[1] and not is_after(floors[1], floors[0], RULES.policy):
        rules.append("the version floor went down")
    if floors[0] != floors[1] and after.record.stage is not Stage.IDLE:
        rules.append("the version floor rose without a commit")
    began = effect.front.on_trial and not before.front.on_trial
    if began:
        source = effect.front.serving.replace("bundle", "source", 1)
        if record.is_quarantined(source):
            rules.append("a quarantined source digest is activated again")
        is_committed = record.committed is not None and record.committed.bundle_digest == effect.front.serving
        if not is_committed and record.stage is not Stage.ACTIVATING:
            rules.append("a trial begins before it is written down")
    moved = effect.pointer != before.pointer
    if moved and effect.pointer != record.committed and record.stage is not Stage.COMMITTING:
        rules.append("the pointer moves before a commit is written down")
    return rules


def _unrest(world: World, rests: dict[World, tuple[World, int] | None], report: Report) -> list[str]:
    """What is wrong when nothing goes wrong any more."""
    way: list[World] = []
    found: tuple[World, int] | None = None
    here = replace(world, budget=Budget(), coming=())
    while len(way) < MAX_SETTLE_STEPS:
        if here in rests:
            found = rests[here]
            break
        way.append(here)
        after = _healthy(here)
        if after == here:
            found = (here, 0)
            break
        here = after
    for steps, passed in enumerate(reversed(way)):
        rests[passed] = None if found is None else (found[0], found[1] + steps)
    if found is None:
        return ["it never comes to rest"]
    report.longest_settle = max(report.longest_settle, found[1] + len(way))
    return list(_restless(found[0]))


def _healthy(world: World) -> World:
    """One step of a world in which nothing goes wrong: the front is there and callers come."""
    if not world.front.is_up:
        return boots(world)
    if world.front.on_trial and not world.front.traffic:
        return replace(world, front=replace(world.front, traffic=True))
    return step(world)[2]


def _restless(world: World) -> Iterator[str]:
    record, front = world.record, world.front
    committed = "" if record.committed is None else record.committed.bundle_digest
    if record.stage not in (Stage.IDLE, Stage.HELD):
        yield "an update is never finished"
    if front.serving != committed:
        yield "at rest another model serves than is committed"
    if world.pointer != record.committed:
        yield "at rest the pointer is not what is committed"
    if front.on_trial:
        yield "at rest a trial goes on"
    if any(bundle and number != front.active for number, bundle in enumerate(front.slots)):
        yield "at rest a slot is left over"
    if front.serving and world.kind_of(front.serving) not in (Kind.GOOD, Kind.DOUBTED):
        yield "at rest a bad model serves"
    if record.stage is Stage.HELD and record.under_way.reason not in (HeldFor.AGREEMENT, HeldFor.FRONT_CRASHED):
        yield f"it is held for {record.under_way.reason}"
    if record.stage is Stage.IDLE and not record.on_hold:
        yield from _untaken(world)


def _untaken(world: World) -> Iterator[str]:
    """A healthy cycle takes the newest good revision without help."""
    record = world.record
    for row in world.hub:
        version = version_of(row.revision, RULES.policy)
        known = None if version is None else record.known_digests.get(version.text)
        is_new = is_after(row.revision, record.floor, RULES.policy)
        is_itself = known in (None, row.source_digest) and not record.is_quarantined(row.source_digest)
        if row.kind is Kind.GOOD and is_new and is_itself:
            yield "a good revision is never taken"


# Worlds and words.


def _first_install(first: Published, coming: tuple[Published, ...], budget: Budget) -> World:
    return World(plain(ModelRecord("model")), (first,), coming, Front(), budget)


def _installed(coming: tuple[Published, ...], budget: Budget) -> World:
    committed = Installed(R1.revision, R1.source_digest, R1.bundle_digest)
    record = plain(ModelRecord("model", committed=committed, floor=R1.revision, has_garbage=False))
    front = Front(slots=(R1.bundle_digest, ""), active=0)
    return World(record, (R1,), coming, front, budget, committed, frozenset({R1.bundle_digest}), begun=True)


def _title(world: World) -> str:
    rows = ", ".join(f"{row.revision} {row.kind}" for row in (*world.hub, *world.coming))
    return f"[{'first install' if world.record.committed is None else 'installed'}: {rows}]"


def _way(world: World, came: dict[World, tuple[str, World | None]]) -> str:
    names: list[str] = []
    here: World | None = world
    while here is not None:
        name, before = came[here]
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
            rules = sorted(explore(crash_mutations.worlds(all_worlds())).violations)
        unnoticed += not rules
        tell(f"mutation {name!r}: {'; '.join(rules) or 'NOT NOTICED'}\n")
    return 1 if report.violations or unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
