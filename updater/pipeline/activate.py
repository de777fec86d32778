"""ACTIVATING: the proven candidate begins to answer callers, on trial. Pure."""

from updater.actions import Action, Activated, ActivateLoad, Enter, Failed, Wait
from updater.pipeline import candidate, moves
from updater.pipeline.moves import Concluded
from updater.ports import Facts
from updater.record import Ending, EndsIn, HeldFor, ModelRecord, Stage, UpdateKind
from updater.rules import Rules

_MOVED = frozenset({"GENERATION_CONFLICT", "FRONT_UNREACHABLE", "DRAINING"})
_MAX_LOST = 2  # lives of the front that may end here: whether the swap had happened is not known


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
    """Begin the trial; begun already and cut off before it was written, its term is extended."""
    update, front = record.under_way, facts.front
    if front is None:
        return Wait(rules.look_seconds, "the front cannot be reached")
    if front.life != update.front_life:
        return Enter(Stage.ROLLING_BACK, "FRONT_STOPPED", "the front ended while it was swapped in")
    if front.is_draining:
        return Wait(rules.look_seconds, "the front is about to end")
    if front.trial is not None and not candidate.is_on_trial(update, front):
        return Enter(Stage.ROLLING_BACK, "TRIAL_UNKNOWN", "another revision is on trial")
    slot = candidate.slot_of(update, front)
    if slot is None or (slot.state != "LOADED" and front.trial is None):
        return Enter(Stage.ROLLING_BACK, "CANDIDATE_GONE", "the candidate's runner is gone")
    return ActivateLoad(slot.load_id, rules.observe.term_seconds, update.update_id, front.generation)


def activated(record: ModelRecord, result: Activated, facts: Facts) -> Concluded:
    """It answers callers: it is observed."""
    record = moves.enter(record, Stage.OBSERVING, front_life=result.front_life, probes_good=0, probes_bad=0)
    return record, (moves.event(record, facts, "trial_began", f"{record.under_way.revision} answers on trial"),)


def failed(record: ModelRecord, fault: Failed, facts: Facts, rules: Rules) -> Concluded:
    """It could not be swapped in."""
    why = f"{fault.reason}: {fault.message}"
    if fault.reason in _MOVED:
        return record, ()
    if record.under_way.attempts + 1 >= rules.max_attempts:
        return moves.hold(record, facts, HeldFor.INCONCLUSIVE, f"it could not be activated: {why}")
    record = moves.try_again(record, rules)
    return record, (moves.event(record, facts, "activation_failed", why),)


def lost(record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str) -> Concluded:
    """Something ended before it was known whether the trial had begun."""
    update = record.under_way
    is_orderly = update.orderly or (facts.front is not None and facts.front.last_ended_orderly)
    if update.kind is UpdateKind.RETURN and not is_orderly:
        return moves.stay(record, facts, reason, message)
    if reason != "FRONT_STOPPED" or is_orderly:
        return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), reason, message)
    record = record.with_update(crashes=update.crashes + 1)
    if record.committed is None:
        if update.crashes + 1 >= rules.max_crashes:
            return moves.hold(record, facts, HeldFor.FRONT_CRASHED, f"{message}, {update.crashes + 1} times")
        return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), "FRONT_CRASHED", message)
    if update.crashes + 1 >= _MAX_LOST:
        return moves.refuse(record, facts, rules, "FRONT_CRASHED", f"{message}, {update.crashes + 1} times")
    return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), "FRONT_CRASHED", message)
