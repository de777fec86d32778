"""COMMITTING and ROLLING_BACK: how an update ends. Pure.

A commit has a fixed order: write the stage, renew the trial's lease if need be, write the pointer, commit the trial at
the server, write the record as committed. A trial that is lost before the pointer is written is rolled back; after that
the commit is completed in any case.
"""

from dataclasses import replace

from updater.core import breaker
from updater.core.breaker import BreakerName
from updater.core.effects import CommitLoad, Effect, EffectFailure, Result, Wait, WritePointer
from updater.core.facts import TRIAL_COMMITTED, Facts, PointerState
from updater.core.record import Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage
from updater.core.rules import Rules
from updater.core.versions import choose_higher
from updater.stages import failback, observe, reconcile, transitions, trial_lease
from updater.stages.transitions import Transition


def decide_commit(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """Write the pointer, then commit at the server, then update the record; a failback writes no pointer."""
    if failback.is_under_way(record):
        return failback.decide_commit(record, facts, rules)
    update, server = record.under_way, facts.server
    is_written = facts.pointer_is_readable and facts.pointer == update.installed
    is_unknown = facts.pointer_state is PointerState.UNKNOWN  # it may have been written already
    is_settled = is_unknown or is_written or is_committed(record, facts)
    reason = "" if is_settled else observe.find_end_reason(record, facts)
    if reason:
        return observe.end_trial(record, facts, rules, reason)
    if server is None or is_unknown:
        why = f"{reconcile.POINTER_UNKNOWN}; the commit waits for it" if is_unknown else "the server cannot be reached"
        return _renew_lease(record, facts, rules) or Wait(rules.look_seconds, why)
    if not is_written:
        return _renew_lease(record, facts, rules) or WritePointer(update.installed)
    if server.trial is not None and transitions.is_on_trial(update, server):
        return CommitLoad(server.trial.load_id, update.update_id, server.generation)
    return _commit(record, facts, rules)


def apply_commit_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """Apply the result of writing the pointer, or of committing the trial, after which the update ends."""
    if isinstance(result, EffectFailure):
        return reconcile.apply_result(record, effect, result, facts, rules)
    if not isinstance(effect, CommitLoad):
        return Transition(record)  # the pointer: the next facts show it
    return failback.commit(record, facts, rules) if failback.is_under_way(record) else _commit(record, facts, rules)


def is_committed(record: ModelRecord, facts: Facts) -> bool:
    """Whether a commit can no longer be rolled back.

    That is so if the pointer names the candidate, or if it must have done so before it was lost: the server has
    committed the candidate or has started with it.
    """
    if record.stage is not Stage.COMMITTING or failback.is_under_way(record):
        return False
    if facts.pointer_is_readable and facts.pointer == record.under_way.installed:
        return True
    return observe.find_end_reason(record, facts) == TRIAL_COMMITTED or _has_started_with(record, facts)


def is_pointer_unknown(record: ModelRecord, facts: Facts) -> bool:
    """Whether a commit waits for a pointer that cannot be read now and may name the candidate: it has no deadline.

    Only a person can repair the disk, or start the newer hotslot again; the status says so, and the trial goes on.
    """
    is_commit = record.stage is Stage.COMMITTING and not failback.is_under_way(record)
    return is_commit and facts.pointer_state is PointerState.UNKNOWN


def decide_rollback(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """Restore the committed revision; once it serves, the update ends as recorded in `Ending`."""
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
            return _hold(record, facts, rules)


def apply_stuck(record: ModelRecord, facts: Facts, rules: Rules, why: str) -> Transition:
    """Roll back an update that took too many steps or too much time, then hold it."""
    if record.stage is not Stage.ROLLING_BACK:
        return transitions.hold(record, facts, HeldFor.STUCK, why)
    if failback.is_under_way(record):  # the committed revision goes on being restored from IDLE
        return transitions.end(record, facts, Outcome.ABANDONED, HeldFor.STUCK.value, why)
    ending = record.under_way.ending or Ending(EndsIn.HELD)
    ending = replace(ending, ends_in=EndsIn.HELD, held_for=ending.held_for or HeldFor.STUCK)
    return _hold(record.with_update(ending=ending, reason=HeldFor.STUCK.value, message=why), facts, rules)


def _renew_lease(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | None:
    """Extend the trial's lease before the pointer is written, which may wait for its lock.

    None if the lease is fresh, or if the server refuses because it drains.
    """
    update, server = record.under_way, facts.server
    if server is None or server.trial is None or server.is_draining or not transitions.is_on_trial(update, server):
        return None
    is_fresh = trial_lease.is_fresh(server.trial, rules.observe)
    return None if is_fresh else trial_lease.renew(update, server, server.trial, rules.observe)


def _commit(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """Commit the update: raises `min_version`, closes the activation breaker, keeps the previous revision."""
    update = record.under_way
    limits = rules.breakers[BreakerName.ACTIVATION]
    record = transitions.remember_replaced(record, facts, record.committed, update.installed)
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
        bridge=None,
    )
    how = "on probes" if update.on_probes else "on traffic"
    return transitions.end(record, facts, Outcome.COMMITTED, update.reason, f"{update.revision} is committed, {how}")


def _has_started_with(record: ModelRecord, facts: Facts) -> bool:
    """Whether a restarted server serves the update although the pointer cannot be read now."""
    update, server = record.under_way, facts.server
    if facts.pointer_is_readable or server is None or server.trial is not None:
        return False
    is_restarted = server.incarnation != update.server_incarnation
    return is_restarted and server.active is not None and server.active.bundle_digest == update.bundle_digest


def _try_again(record: ModelRecord, facts: Facts) -> Transition:
    """Gate and try the same sealed bundle again, unless an operator's command forbids it."""
    update = record.under_way
    if record.is_quarantined(update.source_digest) and not (record.paused and not update.forced):
        return transitions.end(record, facts, Outcome.REFUSED, "QUARANTINED")
    if not update.bundle_digest or (record.paused and not update.forced):
        return transitions.end(record, facts, Outcome.ABANDONED)
    record = transitions.enter(
        record,
        Stage.GATING,
        load_id="",
        server_incarnation="",
        boot_id="",
        orderly=False,
        ending=None,
        reason="",
        message="",
    )
    return transitions.with_event(record, facts, "update_started_again", f"{update.revision} is tried again")


def _hold(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """Enter HELD, after the candidate was retired; a person must decide."""
    update = record.under_way
    is_for_space = update.ending is not None and update.ending.held_for is HeldFor.DISK_FULL
    pause = rules.abandoned_seconds if is_for_space and not update.needed_bytes else 0.0
    record = replace(transitions.enter(record, Stage.HELD, load_id="", retry_in_seconds=pause), has_garbage=True)
    return transitions.with_event(record, facts, "update_held", record.under_way.message)
