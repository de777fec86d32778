"""OBSERVING: the candidate answers callers on trial, until there is a verdict. Pure."""

from dataclasses import replace

from updater.actions import Action, ActivateLoad, Enter, Failed, Probe, Probed, Wait
from updater.pipeline import candidate, memory, moves
from updater.pipeline.moves import Concluded
from updater.pipeline.trial import TrialJudgement, TrialVerdict, judge
from updater.ports import Facts
from updater.record import Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.rules import ObserveRules, Rules

_BLAMELESS_ENDS = frozenset({"TERM_EXPIRED", "YIELDED"})  # the updater was away; the slot was needed


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:  # noqa: PLR0911  one line a case
    """Wait, probe, extend the term, keep it, or take it back."""
    update, front = record.under_way, facts.front
    if front is None:
        return Wait(rules.observe.look_seconds, "the front cannot be reached")
    gone = is_gone(record, facts)
    if gone:
        return Enter(Stage.ROLLING_BACK, gone, "the trial is over")
    trial = front.trial
    if trial is None:
        raise RuntimeError("a trial that is not gone is there")
    judgement = judge(update, front, trial, rules_of(update, rules))
    if judgement.verdict in (TrialVerdict.KEEP, TrialVerdict.KEEP_ON_PROBES):
        return Enter(Stage.COMMITTING, judgement.reason, judgement.message)
    if judgement.verdict not in (TrialVerdict.WAIT, TrialVerdict.PROBE):
        return Enter(Stage.ROLLING_BACK, judgement.reason, judgement.message)
    if front.is_draining:
        return Wait(rules.observe.look_seconds, "the front is about to end")
    if trial.term_left_seconds < rules.observe.term_seconds / 2:
        return ActivateLoad(trial.load_id, rules.observe.term_seconds, update.update_id, front.generation)
    if judgement.verdict is TrialVerdict.PROBE:
        return Probe(trial.load_id, rules.observe.probes_at_once)
    return Wait(rules.observe.look_seconds, judgement.message)


def is_gone(record: ModelRecord, facts: Facts) -> str:
    """Why the trial is no longer there, for machines; empty if it is, or if nobody can say."""
    update, front = record.under_way, facts.front
    if front is None:
        return ""
    if front.life != update.front_life:
        return "FRONT_STOPPED"
    if candidate.is_on_trial(update, front):
        return ""
    last = front.last_trial
    is_ours = front.trial is None and last is not None and last.bundle_digest == update.bundle_digest
    return last.outcome if is_ours and last is not None else "TRIAL_UNKNOWN"


def rules_of(update: Update, rules: Rules) -> ObserveRules:
    """How its trial is judged.

    What returns to a device is known to be good: a verdict needs no callers, and one death there, or one
    answer that is not finite, says enough of the device.
    """
    if update.kind is not UpdateKind.RETURN:
        return rules.observe
    return replace(rules.observe, probes_allowed=True, max_restarts=0, max_not_finite=0)


def noted(record: ModelRecord, facts: Facts) -> ModelRecord:
    """Remember whether the front was seen to end in good order; a stop of this updater alone is forgotten."""
    if record.stage not in (Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING) or facts.front is None:
        return record
    if facts.front.life != record.under_way.front_life:
        return record
    return record.with_update(orderly=facts.front.is_draining)


def taken_back(  # noqa: PLR0911  one line a case
    record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str
) -> Concluded:
    """The trial is over without a commit: whose fault was it?"""
    gone = is_gone(record, facts)
    update, front = record.under_way, facts.front
    if gone == "FRONT_STOPPED":
        return front_stopped(record, facts, rules)
    if gone and _ran_out(record, facts):
        return _does_not_fit(record, facts)
    if gone == "TERM_EXPIRED" and update.kind is UpdateKind.RETURN:
        return moves.stay(record, facts, gone, "its trial ran out before there was a verdict")
    if gone in _BLAMELESS_ENDS:
        return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), gone, "the trial ended without blame")
    if gone:
        message = f"the trial of {update.revision} was ended from elsewhere"
        return moves.hold(record, facts, HeldFor.TAKEN_BACK, message)
    if front is None or front.trial is None:
        return moves.hold(record, facts, HeldFor.INCONCLUSIVE, message)
    judgement = judge(update, front, front.trial, rules_of(update, rules))
    return _condemned(record, facts, rules, judgement, reason, message)


def front_stopped(record: ModelRecord, facts: Facts, rules: Rules) -> Concluded:
    """The front's life ended in the trial: in good order without blame, by a crash as the trial's fault."""
    update, front = record.under_way, facts.front
    if update.orderly or (front is not None and front.last_ended_orderly):
        return moves.roll_back(
            record, facts, Ending(EndsIn.AGAIN), "FRONT_STOPPED", "the front was stopped in good order"
        )
    crashes = update.crashes + 1
    record = record.with_update(crashes=crashes)
    message = f"the front crashed while {update.revision} answered on trial"
    if record.committed is not None:
        return moves.refuse(record, facts, rules, "FRONT_CRASHED", message, outcome=Outcome.ROLLED_BACK)
    if crashes >= rules.max_crashes:
        return moves.hold(record, facts, HeldFor.FRONT_CRASHED, f"{message}, {crashes} times")
    return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), "FRONT_CRASHED", message)


def kept(record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str) -> Concluded:
    """It has proven itself on callers: from here on only the commit is left."""
    update, front = record.under_way, facts.front
    evidence = None
    if front is not None and front.trial is not None:
        evidence = judge(update, front, front.trial, rules_of(update, rules)).evidence
    record = moves.enter(record, Stage.COMMITTING, on_probes=reason == "KEPT_ON_PROBES", reason=reason, message=message)
    return record, (moves.event(record, facts, "trial_kept", message, evidence=evidence),)


def probed(record: ModelRecord, result: Probed) -> Concluded:
    """Probes stand in for callers."""
    update = record.under_way
    return record.with_update(
        probes_good=update.probes_good + result.good, probes_bad=update.probes_bad + result.bad
    ), ()


def failed(record: ModelRecord, _fault: Failed, _facts: Facts, _rules: Rules) -> Concluded:
    """A probe or an extension did not get through: the next look shows how things are."""
    return record, ()


def _ran_out(record: ModelRecord, facts: Facts) -> bool:
    """Whether the front ended the trial because it ran out of memory; a slot that was needed is nobody's fault."""
    last = None if facts.front is None else facts.front.last_trial
    if last is None or last.reason not in memory.REASONS:
        return False
    return last.outcome != "YIELDED" or record.under_way.kind is UpdateKind.RETURN


def _does_not_fit(record: ModelRecord, facts: Facts) -> Concluded:
    update = record.under_way
    active = None if facts.front is None else facts.front.active
    device = update.device or ("its device" if active is None else active.device)
    message = f"{update.revision} ran out of memory on {device} while it answered on trial"
    return moves.hold(record, facts, HeldFor.DOES_NOT_FIT, message)


def _condemned(
    record: ModelRecord, facts: Facts, rules: Rules, judgement: TrialJudgement, reason: str, message: str
) -> Concluded:
    evidence = judgement.evidence
    if judgement.verdict is TrialVerdict.DOES_NOT_FIT:
        return moves.hold(record, facts, HeldFor.DOES_NOT_FIT, message, evidence=evidence)
    if judgement.verdict is TrialVerdict.SLOWER:
        return moves.hold(record, facts, HeldFor.SLOWER, message, evidence=evidence)
    if judgement.verdict is TrialVerdict.ROLL_BACK:
        return moves.refuse(record, facts, rules, reason, message, evidence=evidence, outcome=Outcome.ROLLED_BACK)
    return moves.hold(record, facts, HeldFor.INCONCLUSIVE, message, evidence=evidence)
