"""The updater's state machine: `refresh`, `decide`, `apply_result`. Pure.

The loop repeats: read the facts, refresh the record, decide one step, perform its effect if it has one, apply the
result, write the record. The record is written before the next effect, so that a stage is durable before its effects
are performed; an effect that was interrupted is performed again.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from updater.core import breaker
from updater.core.breaker import BreakerName, BreakerState
from updater.core.effects import CollectGarbage, Effect, EffectFailure, Listed, PollHub, Result, Wait
from updater.core.facts import Facts, PointerState
from updater.core.record import ModelRecord, Stage, Update, UpdateKind
from updater.core.rules import Rules
from updater.core.versions import choose_higher, parse_version
from updater.stages import (
    activate,
    bridge,
    commands,
    compare,
    failback,
    finalize,
    gate,
    observe,
    reconcile,
    rollout,
    stage,
    transitions,
    verify,
    watch,
)
from updater.stages.commands import CommandResult
from updater.stages.transitions import Transition

# The stages that each stage may lead to, in one transition; docs/explanation/update-states.md is printed from it.
TRANSITIONS: Mapping[Stage, frozenset[Stage]] = MappingProxyType(
    {
        Stage.IDLE: frozenset({Stage.STAGING, Stage.VERIFYING, Stage.GATING, Stage.ROLLING_BACK}),
        Stage.STAGING: frozenset({Stage.VERIFYING, Stage.ROLLING_BACK, Stage.IDLE}),
        Stage.VERIFYING: frozenset({Stage.GATING, Stage.STAGING, Stage.ROLLING_BACK, Stage.IDLE}),
        Stage.GATING: frozenset({Stage.SHADOWING, Stage.ACTIVATING, Stage.STAGING, Stage.ROLLING_BACK}),
        Stage.SHADOWING: frozenset({Stage.ACTIVATING, Stage.ROLLING_BACK}),
        Stage.ACTIVATING: frozenset({Stage.OBSERVING, Stage.ROLLING_BACK}),
        Stage.OBSERVING: frozenset({Stage.COMMITTING, Stage.ROLLING_BACK}),
        Stage.COMMITTING: frozenset({Stage.IDLE, Stage.ROLLING_BACK}),
        Stage.ROLLING_BACK: frozenset({Stage.IDLE, Stage.GATING, Stage.HELD}),
        Stage.HELD: frozenset({Stage.STAGING, Stage.VERIFYING, Stage.GATING, Stage.ROLLING_BACK, Stage.IDLE}),
    }
)
Step = Effect | Wait | Transition
_Decide = Callable[[ModelRecord, Facts, Rules], Step]
_ApplyResult = Callable[[ModelRecord, Effect, Result, Facts, Rules], Transition]
_RESTING = frozenset({Stage.IDLE, Stage.HELD})
_ROLLBACK_STEPS = 20  # steps that a rollback may take beyond the limit of an update


def refresh(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """The record updated by the facts: timers are advanced, and the server's reports are recorded.

    The first step of a process does only this, so that the start of the process is written before anything else.
    """
    if facts.is_first:
        record = failback.note_reset(record, facts, rules)
        return Transition(transitions.begin_life(record, facts, rules))
    record = transitions.let_time_pass(record, facts, rules)
    if record.stage is Stage.COMMITTING and finalize.is_pointer_unknown(record, facts):
        record = record.with_update(stage_seconds=0.0)  # its time begins when the pointer can be read again
    record = reconcile.note_draining(reconcile.note_trouble(record, facts), facts)
    record, events = failback.note_fallback(record, facts, rules)
    if record.bridge is None and facts.is_off_card:
        record = bridge.find_lost(record, facts)
    if record.bridge is not None:
        record, bridged = bridge.note(record, facts)
        events = (*events, *bridged)
    record, noted = compare.note_label_mix(record, facts, rules)
    return Transition(record, (*events, *noted))


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Step | CommandResult:
    """Choose the next step.

    Args:
        record: refreshed with these facts.
        facts: read just now.
        rules: thresholds, limits and policies of this model.

    Raises:
        RuntimeError: a stage led to one that is not in `TRANSITIONS`; nothing has changed.

    Returns:
        An effect to be performed; or a pause; or, where no effect is needed, the record after the step: a transition,
        or the result of the operator's command in the facts.
    """
    if facts.is_first:
        return Transition(record)
    command = facts.command
    if command is not None and not commands.must_wait(record, command.kind):
        result = commands.apply(record, command, facts, rules)
        return replace(result, transition=_complete(record, result.transition, facts, rules))
    interruption = _over_limit(record, facts, rules) or failback.interrupt(record, facts)
    step = interruption or _STAGES[record.stage].decide(record, facts, rules)
    return _complete(record, step, facts, rules) if isinstance(step, Transition) else step


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """The record after an effect.

    Args:
        record: from which the effect was decided.
        effect: was performed.
        result: of the effect.
        facts: from which the effect was decided.
        rules: thresholds, limits and policies of this model.
    """
    match effect:
        case PollHub():
            if not isinstance(result, Listed | EffectFailure):
                raise RuntimeError(f"a poll of the hub came to {result}")
            transition = watch.apply_result(record, result, facts, rules)
        case CollectGarbage():
            transition = _apply_collected(record, result, facts)
        case _:
            transition = _STAGES[record.stage].apply_result(record, effect, result, facts, rules)
    return _complete(record, transition, facts, rules)


def _complete(record: ModelRecord, transition: Transition, facts: Facts, rules: Rules) -> Transition:
    """Report the end of a failback to its breaker; raises RuntimeError for an illegal transition."""
    before, after = record.stage, transition.record.stage
    if after is not before and after not in TRANSITIONS[before]:
        raise RuntimeError(f"{before} must not lead to {after}")
    return failback.report_probe(_give_back_probe(transition, facts, rules), facts, rules)


def _give_back_probe(transition: Transition, facts: Facts, rules: Rules) -> Transition:
    """Let the next update be the activation breaker's probe, if that has ended or waits without a verdict."""
    record, events = transition
    is_over = record.update is None or record.stage is Stage.HELD
    if not is_over or record.activation.state is not BreakerState.HALF_OPEN:
        return transition
    limits = rules.breakers[BreakerName.ACTIVATION]
    activation = breaker.report(record.activation, breaker.WorkResult.NEUTRAL, limits, facts.jitter)
    return Transition(replace(record, activation=activation), events)


def _over_limit(record: ModelRecord, facts: Facts, rules: Rules) -> Transition | None:
    """End an update that has taken too many steps, or whose stage has taken too long."""
    update, server = record.update, facts.server
    if update is None or record.stage in _RESTING:
        return None
    is_rollback = record.stage is Stage.ROLLING_BACK
    has_many_steps = update.steps > rules.max_steps + (_ROLLBACK_STEPS if is_rollback else 0)
    limit = rules.stage_seconds.get(record.stage)
    is_late = limit is not None and update.stage_seconds > limit
    if not (has_many_steps or is_late):
        return None
    if finalize.is_committed(record, facts) or finalize.is_pointer_unknown(record, facts):
        return None
    if has_many_steps or limit is None:
        why = f"it took more than {rules.max_steps} steps, starts of the updater included"
        return finalize.apply_stuck(record, facts, rules, why)
    if is_rollback and (server is None or server.is_draining):
        return None  # a restarted server serves the committed revision
    apply_deadline = _STAGES[record.stage].apply_deadline
    return apply_deadline(record, facts, rules, f"{record.stage} took more than {limit:.0f} s")


def _retry_after_deadline(record: ModelRecord, facts: Facts, _rules: Rules, message: str) -> Transition:
    return transitions.retry(record, facts, "DEADLINE", message)


# IDLE and HELD.


def _decide_at_rest(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
    """In order: restore the committed revision, start a failback or reconversion, collect garbage, poll the hub."""
    adopted = _adopt_pointer(record, facts, rules) if record.committed is None else None
    if adopted is not None:
        return adopted
    may_revert = record.stage is Stage.IDLE or reconcile.can_go_back(record, facts)
    if may_revert and reconcile.is_broken(record, facts, rules):
        return reconcile.revert(record, facts)
    step = reconcile.restore(record, facts, rules)
    if step is not None and not isinstance(step, Wait):
        return step
    if record.stage is Stage.IDLE:
        started = failback.start_if_due(record, facts, rules) or _start_reconversion(record, facts)
        if started is not None:
            return started
    if record.has_garbage:
        return _collect_garbage(record, facts, rules)
    next_step = stage.continue_if_space(record, facts) or watch.poll_if_due(record, rules)
    return next_step or step or Wait(rules.look_seconds)


def _adopt_pointer(record: ModelRecord, facts: Facts, rules: Rules) -> Transition | Wait | None:
    """Adopt the committed pointer into a record without a committed revision, for example after an import."""
    if facts.pointer_state is PointerState.UNKNOWN:
        return Wait(rules.look_seconds, reconcile.POINTER_UNKNOWN)
    installed = facts.pointer
    if installed is None:
        return None
    version = parse_version(installed.revision, rules.policy)
    record = replace(record, committed=installed)
    if version is not None:
        record = transitions.remember_version(record, version.text, installed.source_digest)
        record = replace(record, min_version=choose_higher(record.min_version, installed.revision, rules.policy))
    return transitions.with_event(record, facts, "pointer_adopted", f"{installed.revision} was there before")


def _start_reconversion(record: ModelRecord, facts: Facts) -> Transition | None:
    """Start a reconversion of the committed source if this build converts it differently; it is gated as any update."""
    committed, wanted = record.committed, facts.committed_converts_to
    if committed is None or record.paused or not wanted or not record.activation.may_begin:
        return None
    if wanted in (committed.bundle_digest, *record.blocked):
        return None
    update = Update(
        update_id=facts.fresh_id,
        kind=UpdateKind.RECONVERT,
        revision=committed.revision,
        started_at=facts.now,
        source_digest=committed.source_digest,
    )
    return transitions.start(record, update, Stage.VERIFYING, facts)


def _collect_garbage(record: ModelRecord, facts: Facts, rules: Rules) -> CollectGarbage:
    kept = [row for row in (record.committed, record.previous) if row is not None]
    update = record.update
    bundles = {row.bundle_digest for row in kept} | ({update.bundle_digest} if update is not None else set())
    if facts.pointer is not None:
        bundles.add(facts.pointer.bundle_digest)
    if facts.server is not None:
        bundles |= {slot.bundle_digest for slot in facts.server.occupied}
    sources = {row.source_digest for row in kept} | ({update.source_digest} if update is not None else set())
    return CollectGarbage(
        keep_bundles=frozenset(bundles - {""}),
        keep_sources=frozenset(sources - {""}),
        keep_update_id="" if update is None else update.update_id,
        cap_bytes=rules.cap_bytes,
    )


def _apply_collected(record: ModelRecord, result: Result, facts: Facts) -> Transition:
    record = replace(record, has_garbage=False)
    if isinstance(result, EffectFailure):
        return transitions.with_event(record, facts, "collection_failed", f"{result.reason}: {result.message}")
    return Transition(record)


# STAGING, VERIFYING and GATING: the committed revision serves, or is restored first.


def _decide_staging(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
    return _restore_first(record, facts, rules) or stage.decide(record, facts, rules)


def _decide_verifying(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
    return _restore_first(record, facts, rules) or verify.decide(record, facts, rules)


def _decide_gating(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
    candidate = record.under_way.bundle_digest
    return _restore_first(record, facts, rules, keep=candidate) or gate.decide(record, facts, rules)


def _decide_shadowing(record: ModelRecord, facts: Facts, rules: Rules) -> Step:
    candidate = record.under_way.bundle_digest
    return _restore_first(record, facts, rules, keep=candidate) or rollout.decide_shadow(record, facts, rules)


def _restore_first(record: ModelRecord, facts: Facts, rules: Rules, *, keep: str = "") -> Step | None:
    """A step that restores the committed revision; None if it serves, or if the server cannot be reached."""
    if reconcile.is_broken(record, facts, rules):
        return reconcile.revert(record, facts)
    if record.committed is None and facts.server is not None and facts.server.trial is None:
        return None
    step = reconcile.restore(record, facts, rules, keep=keep)
    return None if isinstance(step, Wait) else step


class _StageFunctions(NamedTuple):
    """The functions of one stage: decide a step, apply a result, and apply an exceeded deadline."""

    decide: _Decide
    apply_result: _ApplyResult = reconcile.apply_result
    apply_deadline: Callable[[ModelRecord, Facts, Rules, str], Transition] = finalize.apply_stuck


_STAGES: Mapping[Stage, _StageFunctions] = MappingProxyType(
    {
        Stage.IDLE: _StageFunctions(_decide_at_rest),
        Stage.STAGING: _StageFunctions(_decide_staging, stage.apply_result, stage.apply_deadline),
        Stage.VERIFYING: _StageFunctions(_decide_verifying, verify.apply_result, stage.apply_deadline),
        Stage.GATING: _StageFunctions(_decide_gating, gate.apply_result),
        Stage.SHADOWING: _StageFunctions(_decide_shadowing, rollout.apply_shadow_result, _retry_after_deadline),
        Stage.ACTIVATING: _StageFunctions(activate.decide, activate.apply_result, _retry_after_deadline),
        Stage.OBSERVING: _StageFunctions(observe.decide, observe.apply_result),
        Stage.COMMITTING: _StageFunctions(finalize.decide_commit, finalize.apply_commit_result, _retry_after_deadline),
        Stage.ROLLING_BACK: _StageFunctions(finalize.decide_rollback),
        Stage.HELD: _StageFunctions(_decide_at_rest),
    }
)
