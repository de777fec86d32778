"""COMMITTING and ROLLING_BACK: how an update ends. Pure.

A commit is ordered: the stage is written, then the pointer, then the trial is ended for good, then the record says
committed. Before the pointer is written a lost trial is rolled back; after it the commit stands, whatever happens.
"""

from dataclasses import replace

from updater.core import breaker
from updater.core.breaker import BreakerName
from updater.core.effects import CommitLoad, Effect, EffectFailure, Result, Wait, WritePointer
from updater.core.facts import Facts
from updater.core.record import Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage
from updater.core.rules import Rules
from updater.core.versions import choose_higher
from updater.stages import failback, observe, reconcile, transitions
from updater.stages.transitions import Transition


def decide_commit(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """The pointer first, then the server, then the record; a failback changes no pointer."""
    if failback.is_under_way(record):
        return failback.decide_commit(record, facts, rules)
    update, server = record.under_way, facts.server
    is_written = facts.pointer_is_readable and facts.pointer == update.installed
    reason = "" if is_written or is_committed(record, facts) else observe.find_end_reason(record, facts)
    if reason:
        return observe.end_trial(record, facts, rules, reason)
    if server is None:
        return Wait(rules.look_seconds, "the server cannot be reached")
    if not is_written:
        return WritePointer(update.installed)
    if server.trial is not None and transitions.is_on_trial(update, server):
        return CommitLoad(server.trial.load_id, update.update_id, server.generation)
    return _commit(record, facts, rules)


def apply_commit_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """The pointer is written, or the trial is committed: then the record is."""
    if isinstance(result, EffectFailure):
        return reconcile.apply_result(record, effect, result, facts, rules)
    if not isinstance(effect, CommitLoad):
        return Transition(record)  # the pointer: the next facts show it
    return failback.commit(record, facts, rules) if failback.is_under_way(record) else _commit(record, facts, rules)


def is_committed(record: ModelRecord, facts: Facts) -> bool:
    """Whether a commit has passed the point from which it stands.

    The pointer says so; or it did, since the server has committed, or has started with it, and it was lost since.
    """
    if record.stage is not Stage.COMMITTING or failback.is_under_way(record):
        return False
    if facts.pointer_is_readable and facts.pointer == record.under_way.installed:
        return True
    return observe.find_end_reason(record, facts) == "COMMITTED" or _has_started_with(record, facts)


def decide_rollback(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """Restore what is committed; when it serves, the update ends as was recorded."""
    if reconcile.is_broken(record, facts, rules) and reconcile.can_go_back(record, facts):
        return reconcile.revert(record, facts)
    step = reconcile.restore(record, facts, rules)
    if step is not None:
        return step
    ending = record.under_way.ending or Ending(EndsIn.IDLE)
    match ending.ends_in:
        case EndsIn.IDLE:
            return transitions.end(record, facts, ending.outcome)
        case EndsIn.RETRY:
            return _try_again(record, facts)
        case EndsIn.HELD:
            return _hold(record, facts)


def apply_stuck(record: ModelRecord, facts: Facts, _rules: Rules, why: str) -> Transition:
    """Too many steps, or too much time: roll back, then a person decides."""
    if record.stage is not Stage.ROLLING_BACK:
        return transitions.hold(record, facts, HeldFor.STUCK, why)
    if failback.is_under_way(record):  # what is committed goes on being restored from IDLE
        return transitions.end(record, facts, Outcome.ABANDONED, HeldFor.STUCK.value, why)
    ending = record.under_way.ending or Ending(EndsIn.HELD)
    ending = replace(ending, ends_in=EndsIn.HELD, held_for=ending.held_for or HeldFor.STUCK)
    return _hold(record.with_update(ending=ending, reason=HeldFor.STUCK.value, message=why), facts)


def _commit(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """It serves for good: `min_version` rises, the activation breaker closes, the revision before is kept."""
    update = record.under_way
    limits = rules.breakers[BreakerName.ACTIVATION]
    record = replace(
        record,
        committed=update.installed,
        previous=record.committed if record.committed != update.installed else record.previous,
        min_version=choose_higher(update.revision, record.min_version, rules.policy) or record.min_version,
        activation=breaker.report(record.activation, breaker.WorkResult.SUCCESS, limits, facts.jitter),
        unquarantined=tuple(digest for digest in record.unquarantined if digest != update.source_digest),
        approved=tuple(digest for digest in record.approved if digest != update.source_digest),
        warm_seconds_left=rules.observe.keep_warm_seconds,
        trouble=None,
    )
    how = "on probes" if update.on_probes else "on traffic"
    return transitions.end(record, facts, Outcome.COMMITTED, update.reason, f"{update.revision} is committed, {how}")


def _has_started_with(record: ModelRecord, facts: Facts) -> bool:
    """Whether a restarted server serves the update, and the pointer that it started with cannot be read now."""
    update, server = record.under_way, facts.server
    if facts.pointer_is_readable or server is None or server.trial is not None:
        return False
    is_restarted = server.incarnation != update.server_incarnation
    return is_restarted and server.active is not None and server.active.bundle_digest == update.bundle_digest


def _try_again(record: ModelRecord, facts: Facts) -> Transition:
    """The same sealed bundle is gated and tried once more, unless an operator has decided otherwise since."""
    update = record.under_way
    if record.is_quarantined(update.source_digest) and not (record.paused and not update.forced):
        return transitions.end(record, facts, Outcome.REFUSED, "QUARANTINED")
    if not update.bundle_digest or (record.paused and not update.forced):
        return transitions.end(record, facts, Outcome.ABANDONED)
    record = transitions.enter(
        record, Stage.GATING, load_id="", server_incarnation="", orderly=False, ending=None, reason="", message=""
    )
    return transitions.with_event(record, facts, "update_started_again", f"{update.revision} is tried again")


def _hold(record: ModelRecord, facts: Facts) -> Transition:
    """A person must decide; nothing of the update is loaded any more."""
    record = replace(transitions.enter(record, Stage.HELD, load_id=""), has_garbage=True)
    return transitions.with_event(record, facts, "update_held", record.under_way.message)
