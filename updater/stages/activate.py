"""ACTIVATING: the candidate that has passed its gate is activated on trial. Pure."""

from updater.core.effects import Activated, ActivateLoad, Effect, EffectFailure, Result, Wait
from updater.core.facts import Facts
from updater.core.record import HeldFor, ModelRecord, Stage, UpdateKind
from updater.core.rules import Rules
from updater.stages import compare, reconcile, transitions
from updater.stages.transitions import Transition

_MOVED = frozenset({"GENERATION_CONFLICT", "SERVER_UNREACHABLE", "DRAINING"})
_MAX_LOST = 2  # ends of the server in this stage: whether the trial had begun is not known


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """Begin the trial. If an earlier call has begun it and the record was not written, this call extends its lease."""
    update, server = record.under_way, facts.server
    if server is None:
        return Wait(rules.look_seconds, "the server cannot be reached")
    if server.incarnation != update.server_incarnation:
        return _apply_lost(record, facts, rules, "SERVER_STOPPED", "the server ended while it was activated")
    if server.is_draining:
        return Wait(rules.look_seconds, "the server is about to end")
    if server.trial is not None and not transitions.is_on_trial(update, server):
        return _apply_lost(record, facts, rules, "TRIAL_UNKNOWN", "another revision is on trial")
    slot = transitions.find_slot(update, server)
    if slot is None or (server.trial is None and not slot.is_loaded):
        return _apply_lost(record, facts, rules, "CANDIDATE_GONE", "the candidate's runner is gone")
    return ActivateLoad(
        slot.load_id,
        rules.observe.trial_lease_seconds,
        update.update_id,
        server.generation,
        percent=update.percent if update.percents else None,
        copies=compare.choose_copies(record, rules.compare),
    )


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """The candidate is on trial, or could not be activated."""
    match result:
        case Activated():
            return apply_activated(record, facts)
        case EffectFailure() if isinstance(effect, ActivateLoad):
            return _apply_failed(record, result, facts, rules)
        case _:
            return reconcile.apply_result(record, effect, result, facts, rules)


def apply_activated(record: ModelRecord, facts: Facts) -> Transition:
    """The candidate answers callers: its trial is observed.

    It began in the server that was looked at, which alone knows the load; that server may have ended since.
    """
    record = transitions.enter(record, Stage.OBSERVING, probes_good=0, probes_bad=0, probes_not_finite=0)
    return transitions.with_event(record, facts, "trial_began", f"{record.under_way.revision} answers on trial")


def _apply_failed(record: ModelRecord, failed: EffectFailure, facts: Facts, rules: Rules) -> Transition:
    why = f"{failed.reason}: {failed.message}"
    if failed.reason in _MOVED:
        return Transition(record)
    if record.under_way.attempts + 1 >= rules.max_attempts:
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, f"it could not be activated: {why}")
    return transitions.with_event(transitions.retry_later(record, rules), facts, "activation_failed", why)


def _apply_lost(record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str) -> Transition:
    """The server or the candidate's load ended before it was known whether the trial had begun."""
    update = record.under_way
    is_orderly = update.orderly or (facts.server is not None and facts.server.last_ended_orderly)
    is_restarted = facts.has_machine_restarted(update.boot_id)
    if update.kind is UpdateKind.FAILBACK and not (is_orderly or is_restarted):
        return transitions.fail_failback(record, facts, reason, message)
    if reason != "SERVER_STOPPED" or is_orderly:
        return transitions.retry(record, facts, reason, message)
    crashes = update.crashes + 1
    record = record.with_update(crashes=crashes)
    if record.committed is None and crashes >= rules.max_crashes:
        return transitions.hold(record, facts, HeldFor.SERVER_CRASHED, f"{message}, {crashes} times")
    if record.committed is not None and crashes >= (rules.max_crashes if is_restarted else _MAX_LOST):
        return transitions.refuse(record, facts, rules, "SERVER_CRASHED", f"{message}, {crashes} times")
    return transitions.retry(record, facts, reason if is_restarted else "SERVER_CRASHED", message)
