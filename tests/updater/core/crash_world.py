"""A world small enough to be explored whole: one model, a hub, a front with two slots, a disk, an updater.

Every value is hashable and counters that change nothing are left out, so that two states that behave
alike are one. What the front does here is what its slots do: it boots what the pointer names, a trial is
in memory only, a rollback puts the previous slot back.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from updater.golden import Answer, Asked, GateAnswers
from updater.ports import DeviceSeen, FrontState, GoldenFacts, Release, RevisionSeen, SlotSeen, TrialEndSeen, TrialSeen
from updater.record import Counts, Installed, ModelRecord
from updater.rules import GateRules, ObserveRules, Rules

NOW = datetime(2026, 1, 1, tzinfo=UTC)
THIS, OTHER = "this life", "another life"  # of the front, as the record sees it
GONE = "gone"  # a load id that no slot has any more


class Kind(StrEnum):
    """What is the matter with a revision."""

    GOOD = "good"
    CORRUPT = "corrupt"  # its bytes are not what was listed
    REFUSED = "refused"  # wrong on golden answers
    DOUBTED = "doubted"  # answers otherwise, where nothing is expected: a person must decide
    FAILING = "failing"  # right on golden answers, fails callers


@dataclass(frozen=True, slots=True)
class Published:
    """One revision on the hub."""

    revision: str
    kind: Kind
    content: str  # names what it holds: published again, it is another

    @property
    def source_digest(self) -> str:
        """Names what is published."""
        return f"source {self.content} {self.kind}"

    @property
    def bundle_digest(self) -> str:
        """Names what it becomes."""
        return f"bundle {self.content} {self.kind}"


FIRST = Published("1.0.0", Kind.GOOD, "one")  # what is committed where something is


@dataclass(frozen=True, slots=True)
class Front:
    """The front's memory; gone when it dies."""

    is_up: bool = True
    slots: tuple[str, str] = ("", "")  # bundle digests
    active: int = -1  # slot that answers; -1: none
    on_trial: bool = False
    previous: int = -1  # slot that a trial falls back on
    traffic: bool = False  # enough callers have met the trial
    last_trial: tuple[str, str] = ("", "")  # bundle, outcome
    ended_orderly: bool = False  # the life before this one
    draining: bool = False

    @property
    def serving(self) -> str:
        """Digest of what answers."""
        return self.slots[self.active] if self.is_up and self.active >= 0 else ""

    def ended(self, outcome: str) -> "Front":
        """The trial is over; whoever is active stays active."""
        last = (self.serving, outcome)
        return replace(self, on_trial=False, previous=-1, traffic=False, last_trial=last)

    def back(self, outcome: str) -> "Front":
        """The trial is over and the previous slot answers."""
        previous = self.previous
        return replace(self.ended(outcome), active=previous)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may still go wrong, and how often operators may still speak."""

    updater_deaths: int = 0
    front_deaths: int = 0
    front_stops: int = 0
    expiries: int = 0
    wishes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """All of it."""

    record: ModelRecord
    hub: tuple[Published, ...]
    coming: tuple[Published, ...]  # published later; one with a known revision replaces it
    front: Front
    budget: Budget
    pointer: Installed | None = None
    sealed: frozenset[str] = frozenset()
    begun: bool = False  # this life of the updater has written its first step
    crashed: bool = False  # a front has died in a trial, or an operator has taken something back

    def kind_of(self, bundle: str) -> Kind:
        """What is the matter with a bundle."""
        return Kind(bundle.rsplit(" ", 1)[1])


RULES = Rules(
    gate=GateRules(min_cost_seconds=1e9),
    observe=ObserveRules(
        window_seconds=0.0,
        max_seconds=1e9,
        min_answers=1,
        burst_failures=1,
        probes_allowed=False,
        keep_warm_seconds=0.0,
    ),
    stage_seconds=MappingProxyType({}),
    poll_seconds=0.0,
    max_steps=10**6,
    max_attempts=2,
    max_crashes=2,
    max_failures_an_hour=10**6,
    retry_seconds=0.0,
    abandoned_seconds=0.0,
)
GOLDEN = GoldenFacts("golden", questions=16, expected=8, floor=0.5)


def seen(world: World) -> FrontState | None:
    """What the updater sees of the front."""
    front = world.front
    if not front.is_up:
        return None
    roles = tuple(_slot(front, number) for number in (0, 1))
    trial: TrialSeen | None = None
    stats: tuple[RevisionSeen, ...] = ()
    if front.on_trial:
        previous = f"{front.previous}" if front.previous >= 0 else ""
        trial = TrialSeen(_load_id(front, front.active), front.serving, "", 60.0, Counts())
        if previous:
            trial = replace(trial, previous_load_id=_load_id(front, front.previous))
        if front.traffic:
            is_bad = world.kind_of(front.serving) is Kind.FAILING
            counts = Counts(failed=3, not_finite=3) if is_bad else Counts(answered=9)
            stats = (RevisionSeen(front.serving, "cpu", counts),)
    last = TrialEndSeen(*front.last_trial) if front.last_trial[0] else None
    return FrontState(
        life=THIS,
        generation=1,
        slots=roles,
        active_load_id=_load_id(front, front.active) if front.active >= 0 else "",
        is_ready=front.active >= 0,
        is_draining=front.draining,
        last_ended_orderly=front.ended_orderly,
        trial=trial,
        last_trial=last,
        stats=stats,
        devices=(DeviceSeen("cpu", "float32"),),
    )


def answers_of(world: World, bundle: str) -> GateAnswers:
    """What a run of the gate learns of a bundle."""
    kind = world.kind_of(bundle)
    has_active = world.record.committed is not None
    right, other = Answer("yes"), Answer("no")
    active = right if has_active else None
    expected = other if kind is Kind.REFUSED else right
    doubted = other if kind is Kind.DOUBTED else right
    asked = tuple(Asked(f"{number}", "q", "yes", expected, active) for number in range(8))
    asked += tuple(Asked(f"a{number}", "q", "", doubted, active) for number in range(8))
    return GateAnswers("golden", "cpu", "float32", asked, floor=GOLDEN.floor)


def released(published: Published) -> Release:
    """How the hub lists a revision."""
    return Release(published.revision, (), published.source_digest)


def _slot(front: Front, number: int) -> SlotSeen:
    bundle = front.slots[number]
    if not bundle:
        return SlotSeen("", "", "", "", "READY", "FREE")
    role = "PREVIOUS" if number == front.previous else "CANDIDATE"
    if number == front.active:
        role = "TRIAL" if front.on_trial else "ACTIVE"
    return SlotSeen(_load_id(front, number), bundle, "cpu", "float32", "LOADED", role)


def _load_id(front: Front, number: int) -> str:
    return f"{'ab'[number]}:{front.slots[number]}"
