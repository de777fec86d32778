"""ACTIVATING: the proven candidate begins to answer callers, on trial. Pure."""

from updater.core.effects import Action, Activated, ActivateLoad, Enter, Failed, Wait
from updater.core.ports import Facts
from updater.core.record import Ending, EndsIn, HeldFor, ModelRecord, Stage, UpdateKind
from updater.core.rules import Rules
from updater.stages import transitions
from updater.stages.transitions import Applied

_MOVED = frozenset({"GENERATION_CONFLICT", "SERVER_UNREACHABLE", "DRAINING"})
_MAX_LOST = 2  # lives of the server that may end here: whether the swap had happened is not known


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
    """Begin the trial; begun already and cut off before it was written, its lease is extended."""
    update, server = record.under_way, facts.server
    if server is None:
        return Wait(rules.look_seconds, "the server cannot be reached")
    if server.incarnation != update.server_incarnation:
        return Enter(Stage.ROLLING_BACK, "SERVER_STOPPED", "the server ended while it was swapped in")
    if server.is_draining:
        return Wait(rules.look_seconds, "the server is about to end")
    if server.trial is not None and not transitions.is_on_trial(update, server):
        return Enter(Stage.ROLLING_BACK, "TRIAL_UNKNOWN", "another revision is on trial")
    slot = transitions.slot_of(update, server)
    if slot is None or (slot.state != "LOADED" and server.trial is None):
        return Enter(Stage.ROLLING_BACK, "CANDIDATE_GONE", "the candidate's runner is gone")
    return ActivateLoad(slot.load_id, rules.observe.trial_lease_seconds, update.update_id, server.generation)


def activated(record: ModelRecord, result: Activated, facts: Facts) -> Applied:
    """It answers callers: it is observed."""
    record = transitions.enter(
        record, Stage.OBSERVING, server_incarnation=result.server_incarnation, probes_good=0, probes_bad=0
    )
    return record, (transitions.event(record, facts, "trial_began", f"{record.under_way.revision} answers on trial"),)


def failed(record: ModelRecord, fault: Failed, facts: Facts, rules: Rules) -> Applied:
    """It could not be swapped in."""
    why = f"{fault.reason}: {fault.message}"
    if fault.reason in _MOVED:
        return record, ()
    if record.under_way.attempts + 1 >= rules.max_attempts:
        return transitions.hold(record, facts, HeldFor.INCONCLUSIVE, f"it could not be activated: {why}")
    record = transitions.try_again(record, rules)
    return record, (transitions.event(record, facts, "activation_failed", why),)


def lost(record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str) -> Applied:
    """Something ended before it was known whether the trial had begun."""
    update = record.under_way
    is_orderly = update.orderly or (facts.server is not None and facts.server.last_ended_orderly)
    if update.kind is UpdateKind.FAILBACK and not is_orderly:
        return transitions.stay(record, facts, reason, message)
    if reason != "SERVER_STOPPED" or is_orderly:
        return transitions.roll_back(record, facts, Ending(EndsIn.RETRY), reason, message)
    record = record.with_update(crashes=update.crashes + 1)
    if record.committed is None:
        if update.crashes + 1 >= rules.max_crashes:
            return transitions.hold(record, facts, HeldFor.SERVER_CRASHED, f"{message}, {update.crashes + 1} times")
        return transitions.roll_back(record, facts, Ending(EndsIn.RETRY), "SERVER_CRASHED", message)
    if update.crashes + 1 >= _MAX_LOST:
        return transitions.refuse(record, facts, rules, "SERVER_CRASHED", f"{message}, {update.crashes + 1} times")
    return transitions.roll_back(record, facts, Ending(EndsIn.RETRY), "SERVER_CRASHED", message)
