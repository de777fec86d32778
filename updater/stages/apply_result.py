"""What a step's outcome does to the record: the other half of `decide`. Pure.

Whatever the action was, time passes first. The returned record is written, with its events, in one
transaction; if that fails the daemon goes on with the record that it had, and the step is done again.
"""

from collections.abc import Callable
from dataclasses import replace

from updater.core import effects as act
from updater.core.effects import Action, Enter, Failed, FaultKind, Result
from updater.core.ports import Facts
from updater.core.record import Event, HeldFor, ModelRecord, Stage
from updater.core.rules import Rules
from updater.stages import (
    activate,
    commands,
    failback,
    finalize,
    gate,
    observe,
    policy,
    reconcile,
    stage,
    transitions,
    verify,
    watch,
)
from updater.stages.transitions import Applied
from updater.stages.watch import version_of

_Way = Callable[[ModelRecord, Enter, Facts, Rules], Applied]
# Every way from a stage to another that the facts alone can lead.
_WAYS: dict[tuple[Stage, Stage], _Way] = {
    (Stage.IDLE, Stage.GATING): lambda record, _, facts, rules: failback.started(record, facts, rules),
    (Stage.IDLE, Stage.VERIFYING): lambda record, _, facts, __: reconcile.convert_again(record, facts),
    (Stage.GATING, Stage.HELD): lambda record, enter, facts, _: transitions.hold(
        record, facts, HeldFor(enter.reason), enter.message
    ),
    (Stage.GATING, Stage.ACTIVATING): lambda record, _, facts, rules: gate.passed(record, facts, rules),
    (Stage.ACTIVATING, Stage.ROLLING_BACK): lambda record, enter, facts, rules: activate.lost(
        record, facts, rules, enter.reason, enter.message
    ),
    (Stage.OBSERVING, Stage.ROLLING_BACK): lambda record, enter, facts, rules: observe.taken_back(
        record, facts, rules, enter.reason, enter.message
    ),
    (Stage.OBSERVING, Stage.COMMITTING): lambda record, enter, facts, rules: observe.kept(
        record, facts, rules, enter.reason, enter.message
    ),
    (Stage.COMMITTING, Stage.ROLLING_BACK): lambda record, enter, facts, rules: observe.taken_back(
        record, facts, rules, enter.reason, enter.message
    ),
    (Stage.COMMITTING, Stage.IDLE): lambda record, _, facts, rules: finalize.committed(record, facts, rules),
    (Stage.ROLLING_BACK, Stage.IDLE): lambda record, _, facts, __: finalize.rolled_back(record, facts),
    (Stage.ROLLING_BACK, Stage.GATING): lambda record, _, facts, __: finalize.again(record, facts),
    (Stage.ROLLING_BACK, Stage.HELD): lambda record, _, facts, __: finalize.held(record, facts),
}


def apply_result(record: ModelRecord, action: Action, result: Result, facts: Facts, rules: Rules) -> Applied:
    """The record after a step, and what is to be told of it.

    Args:
        record: the one that the step was decided from.
        action: what was decided.
        result: what came of it.
        facts: the ones that the step was decided from.
        rules: thresholds, limits and policies of this model.
    """
    record = transitions.aged(record, facts, rules)
    if isinstance(action, act.Begin):
        return transitions.begun(record, facts, rules), ()
    record, noted = failback.noted(observe.noted(reconcile.noted(record, facts), facts), facts, rules)
    record, events = _concluded(record, action, result, facts, rules)
    return failback.settled(record, (*noted, *events), facts, rules)


def _concluded(record: ModelRecord, action: Action, result: Result, facts: Facts, rules: Rules) -> Applied:
    if isinstance(result, Failed):
        return _failed(record, action, result, facts, rules)
    if isinstance(action, Enter):
        return _entered(record, action, facts, rules)
    return _learnt(record, action, result, facts, rules)


def _learnt(record: ModelRecord, action: Action, result: Result, facts: Facts, rules: Rules) -> Applied:  # noqa: PLR0911  one line a result
    """An effect went through."""
    match result:
        case act.Listed():
            return policy.on_listed(record, result, facts, rules)
        case act.Staged() if record.stage is Stage.STAGING:
            return stage.staged(record, result, facts, rules)
        case act.Sealed() if record.stage is Stage.VERIFYING:
            return verify.sealed(record, result, facts, rules)
        case act.Loaded() if _is_candidate(record, action):
            return gate.loaded(record, result, facts, rules)
        case act.Gated() if record.stage is Stage.GATING:
            return gate.gated(record, result, facts, rules)
        case act.Activated() if record.stage is Stage.ACTIVATING:
            return activate.activated(record, result, facts)
        case act.Probed() if record.stage is Stage.OBSERVING:
            return observe.probed(record, result)
        case act.Collected():
            return replace(record, has_garbage=False), ()
        case _:
            return _done(record, action, facts, rules)


def _done(record: ModelRecord, action: Action, facts: Facts, rules: Rules) -> Applied:
    """An effect without news, or a step without an effect."""
    match action:
        case act.Adopt(installed):
            is_release = version_of(installed.revision, rules.policy) is not None
            record = replace(
                record, committed=installed, min_version=installed.revision if is_release else record.min_version
            )
            return record, (
                transitions.event(record, facts, "pointer_adopted", f"{installed.revision} was there before"),
            )
        case act.ApplyCommand(command):
            return commands.apply(record, command, facts, rules)
        case act.CommitLoad() if record.stage is Stage.COMMITTING:
            return finalize.committed(record, facts, rules)
        case act.WritePointer(installed) if record.stage is not Stage.COMMITTING:
            what = "nothing" if installed is None else installed.revision
            return record, (
                transitions.event(record, facts, "pointer_repaired", f"the committed pointer says {what} again"),
            )
        case _:
            return record, ()


def _entered(record: ModelRecord, action: Enter, facts: Facts, rules: Rules) -> Applied:
    """A stage is left for what the facts say."""
    if action.reason in failback.INTERRUPTIONS and failback.is_under_way(record):
        return failback.broken_off(record, facts, action.reason, action.message)
    if action.reason == "DEADLINE":
        if record.stage in (Stage.STAGING, Stage.VERIFYING):
            return stage.abandon(record, facts, rules, f"DEADLINE: {action.message}")
        if record.stage in (Stage.ACTIVATING, Stage.COMMITTING):
            return finalize.start_again(record, facts, "DEADLINE", action.message)
    if action.reason in ("STUCK", "DEADLINE"):
        return finalize.stuck(record, facts, action.message)
    if action.reason == reconcile.BROKEN and action.stage is Stage.ROLLING_BACK:
        return reconcile.fall_back(record, facts)
    way = _WAYS.get((record.stage, action.stage))
    if way is None:
        raise RuntimeError(f"no way from {record.stage} to {action.stage}")
    return way(record, action, facts, rules)


def _failed(record: ModelRecord, action: Action, fault: Failed, facts: Facts, rules: Rules) -> Applied:  # noqa: PLR0911  one line an action
    """An effect did not go through."""
    why = f"{fault.reason}: {fault.message}"
    match action:
        case act.LookAtHub():
            return _not_listed(record, fault, facts, rules)
        case act.StageRevision() if record.stage is Stage.STAGING:
            return stage.failed(record, fault, facts, rules)
        case act.VerifyAndSeal() if record.stage is Stage.VERIFYING:
            return verify.failed(record, fault, facts, rules)
        case act.LoadBundle() if _is_candidate(record, action):
            return gate.load_failed(record, fault, facts, rules)
        case act.LoadBundle():
            return reconcile.load_failed(record, fault, facts, rules)
        case act.RunGate() if record.stage is Stage.GATING:
            return gate.gate_failed(record, fault, facts, rules)
        case act.ActivateLoad() if record.stage is Stage.ACTIVATING:
            return activate.failed(record, fault, facts, rules)
        case act.CollectGarbage():
            record = replace(record, has_garbage=False)
            return record, (transitions.event(record, facts, "collection_failed", why),)
        case _:  # the next look shows how things are
            return record, (transitions.event(record, facts, "step_failed", f"{type(action).__name__}: {why}"),)


def _not_listed(record: ModelRecord, fault: Failed, facts: Facts, rules: Rules) -> Applied:
    why = f"{fault.reason}: {fault.message}"
    if fault.reason == "REVISION_UNKNOWN":  # gone between two questions: the hub is well
        return policy.on_listed(record, act.Listed((), ()), facts, rules)
    is_neutral = fault.kind in (FaultKind.DENIED, FaultKind.NOT_READY)
    was_open = not record.hub.may_begin
    record = watch.missed(record, facts, rules, is_neutral=is_neutral, wait=fault.retry_after_seconds, why=why)
    events: list[Event] = [transitions.event(record, facts, "hub_unanswered", why)]
    if not was_open and not record.hub.may_begin:
        events.append(transitions.event(record, facts, "breaker_opened", f"hub: {record.hub.reason}"))
    return replace(record, requested_revision=""), tuple(events)


def _is_candidate(record: ModelRecord, action: Action) -> bool:
    """Whether a load is the candidate's, not what is committed coming back."""
    if not isinstance(action, act.LoadBundle) or record.stage is not Stage.GATING:
        return False
    update = record.under_way
    return (action.bundle_digest, action.device) == (update.bundle_digest, update.device)
