"""A world small enough to be explored whole: one model, a hub, a server with two slots, a disk, an updater.

Every value is hashable and counters that change nothing are left out, so that two states that behave
alike are one. What the server does here is what its slots do: it start_server what the pointer names, a trial is
in memory only, a rollback puts the previous slot back.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from updater.core.comparison import AnswerComparison, GoldenAnswer
from updater.core.counts import Counts
from updater.core.facts import (
    DeviceSnapshot,
    GoldenFacts,
    Release,
    RevisionSnapshot,
    ServerState,
    ShadowSnapshot,
    SlotSnapshot,
    TrialEndSnapshot,
    TrialSnapshot,
)
from updater.core.golden import GateAnswers, GoldenQuestion
from updater.core.record import CpuFallback, Installed, ModelRecord
from updater.core.rules import GateRules, ObserveRules, ReleasePolicy, Rollout, RolloutRules, Rules
from updater.core.witness import Witness

NOW = datetime(2026, 1, 1, tzinfo=UTC)
THIS, OTHER = "this life", "another life"  # of the server, and of the machine, as the record sees it
GONE = "gone"  # a load id that no slot has any more
CPU, CARD = "cpu", "cuda:0"
LEFT_SECONDS = 1e6  # of any breaker that still waits: only an event lets that time pass


class Kind(StrEnum):
    """The quality of a revision."""

    GOOD = "good"
    CORRUPT = "corrupt"  # its bytes are not what was listed
    REFUSED = "refused"  # wrong on golden answers
    DOUBTED = "doubted"  # answers otherwise, where nothing is expected: a person must decide
    FAILING = "failing"  # right on golden answers, fails callers
    CHANGED = "changed"  # right on golden answers, gives callers others: a person must decide


class Card(StrEnum):
    """The behaviour of the card, where there is one."""

    GOOD = "good"
    FULL = "full"  # no load fits
    TIGHT = "tight"  # a load fits, and no item does
    SPIKY = "spiky"  # a caller's item is too much for it


class Published(NamedTuple):
    """One revision on the hub."""

    revision: str
    kind: Kind
    content: str  # identifies the content; another one if republished

    @property
    def source_digest(self) -> str:
        """Names the published content."""
        return f"source {self.content} {self.kind}"

    @property
    def bundle_digest(self) -> str:
        """Names the bundle converted from it."""
        return f"bundle {self.content} {self.kind}"


FIRST = Published("1.0.0", Kind.GOOD, "one")  # the committed revision where something is
OLDER = Published("0.9.0", Kind.GOOD, "zero")


class Server(NamedTuple):
    """The server's memory; lost when its process ends."""

    is_up: bool = True
    slots: tuple[str, str] = ("", "")  # bundle digests
    devices: tuple[str, str] = (CPU, CPU)  # of the loads
    active: int = -1  # slot that answers; -1: none
    on_trial: bool = False
    previous: int = -1  # slot that a trial falls back on
    traffic: int = 0  # how often enough callers have met the trial, or its copies the candidate
    shadow: int = -1  # slot of a candidate that answers copies; -1: none
    percent: float = 100.0  # of the requests that the trial gets
    last_trial: tuple[str, str, str] = ("", "", "")  # bundle, outcome, reason
    ended_orderly: bool = False  # the life before this one
    draining: bool = False

    @property
    def serving(self) -> str:
        """Digest of what answers."""
        return self.slots[self.active] if self.is_up and self.active >= 0 else ""

    @property
    def serving_on(self) -> str:
        """Device of what answers."""
        return self.devices[self.active] if self.serving else ""

    def load_id(self, number: int) -> str:
        """Id of a slot's load; empty if it holds none."""
        name = f"{'ab'[number]}:{self.slots[number]}"
        return "" if not self.slots[number] else name if self.devices[number] == CPU else f"{name} on the card"

    def holding(self, load_id: str) -> int:
        """The slot of a load; -1 if it is gone."""
        return next((number for number in (0, 1) if load_id and load_id == self.load_id(number)), -1)

    def with_load(self, number: int, bundle: str, device: str = CPU) -> "Server":
        """With another load in a slot, or none."""
        slots, devices = list(self.slots), list(self.devices)
        slots[number], devices[number] = bundle, device
        is_over = number == self.shadow
        changed = self._replace(slots=(slots[0], slots[1]), devices=(devices[0], devices[1]))
        return changed._replace(shadow=-1, traffic=0) if is_over else changed

    def with_trial_ended(self, outcome: str, reason: str = "") -> "Server":
        """With the trial ended; the active slot is not changed."""
        last = (self.serving, outcome, reason)
        return self._replace(on_trial=False, previous=-1, traffic=0, percent=100.0, last_trial=last)

    def with_previous_active(self, outcome: str, reason: str = "") -> "Server":
        """With the trial ended and the previous slot active."""
        previous = self.previous
        return self.with_trial_ended(outcome, reason)._replace(active=previous)


class Budget(NamedTuple):
    """Faults that may still happen, and commands that may still be sent."""

    updater_deaths: int = 0
    server_deaths: int = 0
    server_stops: int = 0
    power_cuts: int = 0
    expiries: int = 0
    card_failures: int = 0  # how often the card runs out under what answers
    breaker_waits: int = 0  # how often the device breaker's time passes
    commands: tuple[str, ...] = ()
    losses: int = 0  # of the journal


class World(NamedTuple):
    """One state of the model."""

    record: ModelRecord
    hub: tuple[Published, ...]
    coming: tuple[Published, ...]  # published later; one with a known revision replaces it
    server: Server
    budget: Budget
    pointer: Installed | None = None
    sealed: frozenset[str] = frozenset()
    has_begun: bool = False  # this life of the updater has written its first step
    crashed: bool = False  # a server has died in a trial, or an operator has taken something back
    card: Card | None = None  # the configured device, if there is one
    fallback: int = 0  # that the server remembers on disk, by number; 0: none
    fallbacks: int = 0  # so far
    must_wait_for_breaker: bool = (
        False  # no return may begin before the breaker's time has passed, or a person wants it
    )
    follows_branch: bool = False  # the content of `master`, not releases
    is_imported: bool = False  # the committed revision was imported, under a name that is no version
    replaced: frozenset[str] = frozenset()  # source digests that were committed, until another one was
    allowed: frozenset[str] = frozenset()  # source digests that an operator has allowed to be tried

    rollout: Rollout = Rollout.TRIAL

    @property
    def rules(self) -> Rules:
        """The rules of the updater."""
        return BRANCH_RULES if self.follows_branch else ROLLOUT_RULES[self.rollout]

    @property
    def may_send(self) -> bool:
        """Whether callers that come now can change something: a canary meets them at each of its steps."""
        server = self.server
        if self.rollout is Rollout.CANARY and server.on_trial and server.previous >= 0:
            return server.traffic < STEPS.index(server.percent) + 1
        return not server.traffic and (server.on_trial or server.shadow >= 0)

    # Of worlds whose journal may be lost; elsewhere there is no witness.
    witness: Witness | None = None
    journal_id: str = "journal"
    protected_writes: int = 0
    older: ModelRecord | None = None  # that may be put back
    is_lost: bool = False  # the journal was lost once
    is_stopped: bool = False  # the updater has found that, and changes nothing
    condemned: frozenset[str] = frozenset()  # source digests that must not come back
    least: str = ""  # minimal version that must not be forgotten

    def __hash__(self) -> int:
        """That of its values; a kept record's is known."""
        known = _hashes.get(id(self.record))
        return hash((hash(self.record) if known is None else known, *self[1:]))

    def kind_of(self, bundle: str) -> Kind:
        """The quality of a bundle."""
        return Kind(bundle.rsplit(" ", 1)[1])


# A record is large, and most worlds share theirs with others: each record is kept once, and hashed once.
_kept: dict[ModelRecord, ModelRecord] = {}
_hashes: dict[int, int] = {}  # by the id of a kept record, which lives as long


def keep(record: ModelRecord) -> ModelRecord:
    """The kept record that equals this one."""
    if id(record) in _hashes:
        return record
    kept = _kept.setdefault(record, record)
    if kept is record:
        _hashes[id(record)] = hash(record)
    return kept


def forget_records() -> None:
    """Keep none any more."""
    _kept.clear()
    _hashes.clear()


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
    max_fetch_attempts=2,
    mismatch_pauses=(0.0,),
    max_crashes=2,
    max_failures_an_hour=10**6,
    retry_seconds=0.0,
    abandoned_seconds=0.0,
)
BRANCH = "master"
BRANCH_RULES = replace(RULES, policy=ReleasePolicy(branch=BRANCH))
STEPS = (50.0, 100.0)
ROLLOUT_RULES = {one: replace(RULES, rollout=RolloutRules(one, STEPS, 0.2, 100, 1e9)) for one in Rollout}
_DEVICES = (DeviceSnapshot(CPU, "float32"),)
_DEVICES_WITH_CARD = (*_DEVICES, DeviceSnapshot(CARD, "float32"))
GOLDEN = GoldenFacts("golden", questions=16, expected=8, min_accuracy=0.5)


def server_state(world: World) -> ServerState | None:
    """The server's state as the updater reads it; None while it is down."""
    server = world.server
    if not server.is_up:
        return None
    roles = tuple(_slot(server, number) for number in (0, 1))
    trial: TrialSnapshot | None = None
    stats: tuple[RevisionSnapshot, ...] = ()
    if server.on_trial:
        previous = f"{server.previous}" if server.previous >= 0 else ""
        trial = TrialSnapshot(server.load_id(server.active), server.serving, "", 60.0, Counts(), percent=server.percent)
        if previous:
            trial = replace(trial, previous_load_id=server.load_id(server.previous))
        if server.traffic:
            is_bad = world.kind_of(server.serving) is Kind.FAILING
            number = server.traffic
            counts = Counts(failed=3 * number, not_finite=3 * number) if is_bad else Counts(answered=9 * number)
            stats = (RevisionSnapshot(server.serving, server.serving_on, counts),)
    last = TrialEndSnapshot(*server.last_trial) if server.last_trial[0] else None
    return ServerState(
        incarnation=THIS,
        generation=1,
        slots=roles,
        active_load_id=server.load_id(server.active) if server.active >= 0 else "",
        is_ready=server.active >= 0,
        is_draining=server.draining,
        last_ended_orderly=server.ended_orderly,
        trial=trial,
        shadow=_compare(world),
        last_trial=last,
        stats=stats,
        devices=_DEVICES if world.card is None else _DEVICES_WITH_CARD,
        cpu_fallback=fallback_of(world),
    )


def _compare(world: World) -> ShadowSnapshot | None:
    """The comparison of the trial, or of a candidate that answers copies."""
    server = world.server
    number = server.active if server.on_trial and server.previous >= 0 else server.shadow
    if number < 0:
        return None
    kind, asked = world.kind_of(server.slots[number]), 1000 * min(1, server.traffic)
    if kind is Kind.FAILING:
        return ShadowSnapshot(server.load_id(number), AnswerComparison(), failed=asked)
    changed = asked // 2 if kind is Kind.CHANGED else 0
    return ShadowSnapshot(server.load_id(number), AnswerComparison(asked, asked, changed))


def fallback_of(world: World) -> CpuFallback | None:
    """The CPU fallback that the server reports."""
    if not world.fallback:
        return None
    return CpuFallback(CARD, CPU, "", NOW + timedelta(seconds=world.fallback), "OUT_OF_MEMORY")


def gate_answers(world: World, slot: int) -> GateAnswers:
    """The golden answers of a slot."""
    bundle, device = world.server.slots[slot], world.server.devices[slot]
    kind = world.kind_of(bundle)
    has_active = world.record.committed is not None
    right, other = GoldenAnswer("yes"), GoldenAnswer("no")
    active = right if has_active else None
    expected = other if kind is Kind.REFUSED else right
    doubted = other if kind is Kind.DOUBTED else right
    if device == CARD and world.card is Card.TIGHT:
        expected = doubted = GoldenAnswer(failure="OUT_OF_MEMORY")
    asked = tuple(GoldenQuestion(f"{number}", "q", "yes", expected, active) for number in range(8))
    asked += tuple(GoldenQuestion(f"a{number}", "q", "", doubted, active) for number in range(8))
    return GateAnswers("golden", device, "float32", asked, min_accuracy=GOLDEN.min_accuracy)


def release_of(published: Published) -> Release:
    """A revision as the hub lists it."""
    return Release(published.revision, (), published.source_digest)


def _slot(server: Server, number: int) -> SlotSnapshot:
    bundle = server.slots[number]
    if not bundle:
        return SlotSnapshot("", "", "", "", "READY", "FREE")
    role = "PREVIOUS" if number == server.previous else "CANDIDATE"
    if number == server.active:
        role = "TRIAL" if server.on_trial else "ACTIVE"
    return SlotSnapshot(server.load_id(number), bundle, server.devices[number], "float32", "LOADED", role)
