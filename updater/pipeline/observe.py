"""OBSERVING: the candidate answers callers on trial, until there is a verdict. Pure."""

from dataclasses import replace

from updater.actions import Action, ActivateLoad, Enter, Failed, Probe, Probed, Wait
from updater.pipeline import candidate, memory, moves
from updater.pipeline.moves import Concluded
from updater.pipeline.trial import TrialJudgement, TrialVerdict, judge
from updater.ports import Facts
from updater.record import Ending, EndsIn, HeldFor, ModelRecord, Outcome, Stage, Update, UpdateKind
from updater.rules import ObserveRules, Rules

_BLAMELESS_ENDS = frozenset({"LEASE_EXPIRED", "YIELDED"})  # the updater was away; the slot was needed


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:  # noqa: PLR0911  one line a case
    """Wait, probe, extend the trial lease, keep it, or take it back."""
    update, server = record.under_way, facts.server
    if server is None:
        return Wait(rules.observe.look_seconds, "the server cannot be reached")
    gone = is_gone(record, facts)
    if gone:
        return Enter(Stage.ROLLING_BACK, gone, "the trial is over")
    trial = server.trial
    if trial is None:
        raise RuntimeError("a trial that is not gone is there")
    judgement = judge(update, server, trial, rules_of(update, rules))
    if judgement.verdict in (TrialVerdict.KEEP, TrialVerdict.KEEP_ON_PROBES):
        return Enter(Stage.COMMITTING, judgement.reason, judgement.message)
    if judgement.verdict not in (TrialVerdict.WAIT, TrialVerdict.PROBE):
        return Enter(Stage.ROLLING_BACK, judgement.reason, judgement.message)
    if server.is_draining:
        return Wait(rules.observe.look_seconds, "the server is about to end")
    if trial.lease_left_seconds < rules.observe.trial_lease_seconds / 2:
        return ActivateLoad(trial.load_id, rules.observe.trial_lease_seconds, update.update_id, server.generation)
    if judgement.verdict is TrialVerdict.PROBE:
        return Probe(trial.load_id, rules.observe.probes_at_once)
    return Wait(rules.observe.look_seconds, judgement.message)


def is_gone(record: ModelRecord, facts: Facts) -> str:
    """Why the trial is no longer there, for machines; empty if it is, or if nobody can say."""
    update, server = record.under_way, facts.server
    if server is None:
        return ""
    if server.life != update.server_life:
        return "SERVER_STOPPED"
    if candidate.is_on_trial(update, server):
        return ""
    last = server.last_trial
    is_ours = server.trial is None and last is not None and last.bundle_digest == update.bundle_digest
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
    """Remember whether the server was seen to end in good order; a stop of this updater alone is forgotten."""
    if record.stage not in (Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING) or facts.server is None:
        return record
    if facts.server.life != record.under_way.server_life:
        return record
    return record.with_update(orderly=facts.server.is_draining)


def taken_back(  # noqa: PLR0911  one line a case
    record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str
) -> Concluded:
    """The trial is over without a commit: whose fault was it?"""
    gone = is_gone(record, facts)
    update, server = record.under_way, facts.server
    if gone == "SERVER_STOPPED":
        return server_stopped(record, facts, rules)
    if gone and _ran_out(record, facts):
        return _does_not_fit(record, facts)
    if gone == "LEASE_EXPIRED" and update.kind is UpdateKind.RETURN:
        return moves.stay(record, facts, gone, "its trial ran out before there was a verdict")
    if gone in _BLAMELESS_ENDS:
        return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), gone, "the trial ended without blame")
    if gone:
        message = f"the trial of {update.revision} was ended from elsewhere"
        return moves.hold(record, facts, HeldFor.TAKEN_BACK, message)
    if server is None or server.trial is None:
        return moves.hold(record, facts, HeldFor.INCONCLUSIVE, message)
    judgement = judge(update, server, server.trial, rules_of(update, rules))
    return _condemned(record, facts, rules, judgement, reason, message)


def server_stopped(record: ModelRecord, facts: Facts, rules: Rules) -> Concluded:
    """The server's life ended in the trial: in good order without blame, by a crash as the trial's fault."""
    update, server = record.under_way, facts.server
    if update.orderly or (server is not None and server.last_ended_orderly):
        return moves.roll_back(
            record, facts, Ending(EndsIn.AGAIN), "SERVER_STOPPED", "the server was stopped in good order"
        )
    crashes = update.crashes + 1
    record = record.with_update(crashes=crashes)
    message = f"the server crashed while {update.revision} answered on trial"
    if record.committed is not None:
        return moves.refuse(record, facts, rules, "SERVER_CRASHED", message, outcome=Outcome.ROLLED_BACK)
    if crashes >= rules.max_crashes:
        return moves.hold(record, facts, HeldFor.SERVER_CRASHED, f"{message}, {crashes} times")
    return moves.roll_back(record, facts, Ending(EndsIn.AGAIN), "SERVER_CRASHED", message)


def kept(record: ModelRecord, facts: Facts, rules: Rules, reason: str, message: str) -> Concluded:
    """It has proven itself on callers: from here on only the commit is left."""
    update, server = record.under_way, facts.server
    evidence = None
    if server is not None and server.trial is not None:
        evidence = judge(update, server, server.trial, rules_of(update, rules)).evidence
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
    """Whether the server ended the trial because it ran out of memory; a slot that was needed is nobody's fault."""
    last = None if facts.server is None else facts.server.last_trial
    if last is None or last.reason not in memory.REASONS:
        return False
    return last.outcome != "YIELDED" or record.under_way.kind is UpdateKind.RETURN


def _does_not_fit(record: ModelRecord, facts: Facts) -> Concluded:
    update = record.under_way
    active = None if facts.server is None else facts.server.active
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
