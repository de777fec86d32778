"""Defences taken out of the shipped functions, one at a time: each must make the crash model fail."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from tests.updater.core.crash_world import LEFT_SECONDS, Budget, Kind, World
from updater.core import breaker as breakers
from updater.core import witness
from updater.core.breaker import Breaker, BreakerRules, BreakerState
from updater.core.effects import SetPercent
from updater.core.facts import Facts, Release
from updater.core.record import ModelRecord, Stage
from updater.core.rules import Rollout, Rules
from updater.core.versions import hub_name
from updater.core.witness import ProtectedState
from updater.stages import activate, choice, compare, failback, machine, observe, reconcile, rollout, transitions
from updater.stages.compare import ChangesJudgement
from updater.stages.machine import Step
from updater.stages.transitions import Transition

_observe = observe.decide
_activated = activate.apply_activated
_is_due = failback.is_due
_fail_failback = transitions.fail_failback


@contextlib.contextmanager
def no_reconcile() -> Iterator[None]:
    """The committed revision is never restored."""
    with patch.object(reconcile, "restore", lambda *_, **__: None):
        yield


@contextlib.contextmanager
def commit_before_observe() -> Iterator[None]:
    """A trial is committed as soon as it has begun."""

    def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
        is_there = facts.server is not None and facts.server.trial is not None
        if not is_there:
            return _observe(record, facts, rules)
        return Transition(transitions.enter(record, Stage.COMMITTING, reason="KEPT"))

    with _decisions(Stage.OBSERVING, decide):
        yield


@contextlib.contextmanager
def no_quarantine() -> Iterator[None]:
    """What failed is not put into quarantine."""
    with patch.object(transitions, "quarantine", lambda record, *_: record):
        yield


@contextlib.contextmanager
def power_cut_blamed() -> Iterator[None]:
    """A restart of the machine is taken for a crash of the server."""
    with patch.object(Facts, "has_machine_restarted", lambda *_: False):
        yield


@contextlib.contextmanager
def min_version_raised_at_activation() -> Iterator[None]:
    """The minimal version rises with the trial, not with the commit."""

    def activated(record: ModelRecord, facts: Facts) -> Transition:
        record, events = _activated(record, facts)
        return Transition(replace(record, min_version=record.under_way.revision), events)

    with patch.object(activate, "apply_activated", activated):
        yield


@contextlib.contextmanager
def failback_without_waiting() -> Iterator[None]:
    """A failback starts right after the fallback."""

    def is_due(record: ModelRecord, facts: Facts) -> bool:
        ready = replace(record, device=replace(record.device, state=BreakerState.OPEN, left_seconds=0.0))
        return _is_due(ready, facts)

    def begin_probe(breaker: Breaker, _rules: BreakerRules) -> Breaker:
        return replace(breaker, state=BreakerState.HALF_OPEN, left_seconds=LEFT_SECONDS)

    with patch.object(failback, "is_due", is_due), patch.object(breakers, "begin_probe", begin_probe):
        yield


@contextlib.contextmanager
def quarantine_on_failed_failback() -> Iterator[None]:
    """A failure of the device is blamed on the revision."""

    def fail(record: ModelRecord, facts: Facts, reason: str, message: str, **evidence: Any) -> Transition:  # noqa: ANN401
        update = record.under_way
        record = transitions.quarantine(record, facts, update.source_digest, update.revision, reason)
        return _fail_failback(record, facts, reason, message, **evidence)

    with patch.object(transitions, "fail_failback", fail):
        yield


@contextlib.contextmanager
def failback_outlives_its_breaker() -> Iterator[None]:
    """A failback continues after its probe was cut off."""
    with patch.object(failback, "interrupt", lambda *_: None):
        yield


@contextlib.contextmanager
def unproven_device_kept() -> Iterator[None]:
    """An unfinished trial of another device is committed when the committed revision is restored."""
    with patch.object(reconcile, "_is_change_of_device", lambda *_: False):
        yield


@contextlib.contextmanager
def replaced_contents_forgotten() -> Iterator[None]:
    """What was committed before is new when a branch has it again."""
    with patch.object(transitions, "remember_replaced", lambda record, *_: record):
        yield


@contextlib.contextmanager
def first_contact_taken() -> Iterator[None]:
    """A release whose age is not known is taken as a newer one."""
    with patch.object(choice, "is_contact_made", lambda *_: True):
        yield


@contextlib.contextmanager
def imports_not_recognised() -> Iterator[None]:
    """An import is not looked for among the releases."""
    with patch.object(choice, "find_recognised", lambda *_: ""):
        yield


@contextlib.contextmanager
def branch_compared_by_name() -> Iterator[None]:
    """A branch that is committed has nothing new."""

    def has_committed_name(record: ModelRecord, release: Release) -> bool:
        return record.committed is not None and hub_name(release.revision) == hub_name(record.committed.revision)

    with patch.object(choice, "_has_committed_content", has_committed_name):
        yield


@contextlib.contextmanager
def no_witness() -> Iterator[None]:
    """A journal that is lost or older is used, and the witness is brought up to it."""
    with patch.object(witness, "compare", lambda *_: witness.Comparison.OUTDATED):
        yield


@contextlib.contextmanager
def witness_without_quarantine() -> Iterator[None]:
    """The witness keeps the minimal version alone."""

    def protect(record: ModelRecord) -> ProtectedState:
        return ProtectedState(record.model, record.min_version)

    with patch.object(witness, "protect", protect):
        yield


@contextlib.contextmanager
def lagging_witness_stops() -> Iterator[None]:
    """A witness that misses the last write is taken for one of another journal."""
    with patch.object(witness, "USABLE", frozenset({witness.Comparison.SAME})):
        yield


@contextlib.contextmanager
def changed_answers_kept() -> Iterator[None]:
    """What was compared is not judged."""
    with patch.object(compare, "judge_changes", lambda *_: ChangesJudgement()):
        yield


@contextlib.contextmanager
def shadow_left_out() -> Iterator[None]:
    """The trial begins right after the gate."""
    with patch.object(rollout, "leave_gate", rollout.begin_activation):
        yield


@contextlib.contextmanager
def canary_gets_all() -> Iterator[None]:
    """A canary gets all requests after its first step, whatever the record says."""

    def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
        step = _observe(record, facts, rules)
        server = facts.server
        if isinstance(step, Transition) or server is None or server.trial is None or server.trial.percent >= 100:
            return step
        return SetPercent(server.trial.load_id, 100.0, "", server.generation)

    with _decisions(Stage.OBSERVING, decide):
        yield


def worlds(all_of_them: list[World], name: str) -> list[World]:
    """Enough worlds for a mutation: without commands, with few faults; for failback, without new revisions."""
    plain = [world for world in all_of_them if not world.budget.commands]
    if name in OF_WITNESSES:
        return [world for world in plain if world.witness is not None]
    plain = [world for world in plain if world.witness is None]
    if name in OF_POWER_CUTS:
        return [world for world in plain if world.budget.power_cuts]
    if name in OF_ROLLOUTS:
        return [world._replace(budget=Budget(1)) for world in plain if _is_rolled_out(world)]
    plain = [world for world in plain if not _is_rolled_out(world)]
    if name in OF_FOLLOWING:
        return [world._replace(budget=Budget(1)) for world in plain if world.follows_branch or world.is_imported]
    plain = [world for world in plain if not world.follows_branch and not world.is_imported]
    if name in OF_FAILBACKS:
        return [world for world in plain if world.card is not None and not world.coming]
    return [world._replace(budget=Budget(1, 1)) for world in plain if world.card is None]


def _is_rolled_out(world: World) -> bool:
    """Whether a world is of those with a rollout, or with changed answers."""
    return world.rollout is not Rollout.TRIAL or any(row.kind is Kind.CHANGED for row in world.coming)


def _decisions(stage: Stage, decide: Callable[..., Step]) -> AbstractContextManager[Any]:
    stages = dict(machine._STAGES)  # noqa: SLF001  a mutation changes private tables
    stages[stage] = stages[stage]._replace(decide=decide)
    return patch.object(machine, "_STAGES", stages)


OF_FAILBACKS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "failback without waiting": failback_without_waiting,
    "quarantine on failed failback": quarantine_on_failed_failback,
    "failback outlives its breaker": failback_outlives_its_breaker,
    "unproven device kept": unproven_device_kept,
}
OF_POWER_CUTS: dict[str, Callable[[], AbstractContextManager[None]]] = {"power cut blamed": power_cut_blamed}
OF_FOLLOWING: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "replaced contents forgotten": replaced_contents_forgotten,
    "first contact taken": first_contact_taken,
    "imports not recognised": imports_not_recognised,
    "branch compared by name": branch_compared_by_name,
}
OF_ROLLOUTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "changed answers kept": changed_answers_kept,
    "shadow left out": shadow_left_out,
    "canary gets all": canary_gets_all,
}
OF_WITNESSES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no witness": no_witness,
    "witness without quarantine": witness_without_quarantine,
    "lagging witness stops": lagging_witness_stops,
}
ALL: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no reconcile": no_reconcile,
    "commit before observe": commit_before_observe,
    "no quarantine": no_quarantine,
    "min_version raised at activation": min_version_raised_at_activation,
    **OF_POWER_CUTS,
    **OF_FAILBACKS,
    **OF_WITNESSES,
    **OF_FOLLOWING,
    **OF_ROLLOUTS,
}
