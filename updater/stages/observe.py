"""OBSERVING: the candidate serves on trial, until it is kept, rolled back or held. Pure."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from updater.core.counts import Counts, compare_costs, leave_out_late, percentile, subtract_counts
from updater.core.effects import MEMORY_REASONS, Effect, Probed, Result, SetPercent, Wait
from updater.core.facts import LEASE_EXPIRED, YIELDED, Facts, ServerState, TrialSnapshot
from updater.core.record import (
    Evidence,
    HeldFor,
    Measured,
    ModelRecord,
    Outcome,
    Stage,
    Update,
    UpdateKind,
)
from updater.core.rules import ObserveRules, Rules
from updater.stages import compare, reconcile, rollout, transitions, trial_lease
from updater.stages.transitions import Transition

COST, LATENCY = "cost_seconds_a_row", "latency_p95_seconds"
_MAY_BE_NOISE = frozenset({COST, LATENCY, "slower_by_chance"})  # measured numbers that alone count against no revision


class TrialVerdict(StrEnum):
    """The verdict on a trial so far."""

    WAIT = "WAIT"
    PROBE = "PROBE"  # wait, and send probes in place of missing traffic
    KEEP = "KEEP"
    KEEP_ON_PROBES = "KEEP_ON_PROBES"
    ROLL_BACK = "ROLL_BACK"  # its failures count against the candidate
    CHANGED_ANSWERS = "CHANGED_ANSWERS"  # more answers change than the golden set predicts: a person decides
    SLOWER = "SLOWER"  # it costs more, answers later, or too late; the machine may be the reason: a person decides
    DOES_NOT_FIT = "DOES_NOT_FIT"  # out of memory: a person decides
    NO_DATA = "NO_DATA"  # too few answers: a person decides


_KEPT = frozenset({TrialVerdict.KEEP, TrialVerdict.KEEP_ON_PROBES})
_UNDECIDED = frozenset({TrialVerdict.WAIT, TrialVerdict.PROBE})
_HELD_FOR = {
    TrialVerdict.CHANGED_ANSWERS: HeldFor.CHANGED_ANSWERS,
    TrialVerdict.SLOWER: HeldFor.SLOWER,
    TrialVerdict.DOES_NOT_FIT: HeldFor.DOES_NOT_FIT,
    TrialVerdict.NO_DATA: HeldFor.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True)
class TrialJudgement:
    """A verdict and the numbers that it is based on."""

    verdict: TrialVerdict
    reason: str = ""
    message: str = ""
    evidence: Evidence = field(default_factory=Evidence)


def judge(update: Update, server: ServerState, trial: TrialSnapshot, rules: ObserveRules) -> TrialJudgement:
    """Judge a trial by what was counted since activation.

    Failures are compared with nothing: the previous slot, if there is one, has answered each of these requests. Device
    seconds are compared with those of all batches of the previous revision, and latency with that of the previous
    slot's answers during the trial, because wall-clock time depends on the load of the machine as much as on the
    revision.
    """
    counted = subtract_counts(transitions.find_counts(update, server), update.at_activation)
    numbers = _describe_failures(update, counted)
    if update.may_be_slower:
        counted = leave_out_late(counted)
    total = counted.answered + counted.failed
    is_enough = total >= rules.min_answers
    measured = (
        *_measure(update, counted, rules),
        *_compare_with_previous(counted, server, trial, rules, update.device),
    )
    evidence = Evidence(measured, on_probes=not is_enough)
    at_once = _find_early_end(update, counted, rules)
    if at_once:
        return TrialJudgement(_choose_verdict(update, counted, rules), at_once, numbers, evidence)
    if is_enough:
        wrong = next((row for row in measured if not row.passed and row.name not in _MAY_BE_NOISE), None)
        if wrong is not None:
            message = f"{wrong.name} {wrong.candidate:.3f}, allowed {wrong.threshold:.3f}; {numbers}"
            return TrialJudgement(_choose_verdict(update, counted, rules), wrong.name.upper(), message, evidence)
    if trial.awaiting_previous and update.stage_seconds < rules.window_seconds + rules.max_seconds:
        message = f"{numbers}, {trial.awaiting_previous} wait for the previous slot"
        return TrialJudgement(TrialVerdict.WAIT, message=message, evidence=evidence)
    judgement = _judge_window(update, counted, rules, numbers, evidence)
    # Tested once, at the end of the window: a test that is repeated at every step finds noise sooner or later.
    slower = next((row for row in measured if row.name in _MAY_BE_NOISE and not row.passed), None)
    if judgement.verdict not in _KEPT or slower is None or update.may_be_slower:
        return judgement
    message = f"{slower.name} {slower.candidate:.4f}, {slower.active:.4f} before, allowed {slower.threshold:.4f}"
    return TrialJudgement(TrialVerdict.SLOWER, slower.name.upper(), f"{message}; {numbers}", evidence)


def _describe_failures(update: Update, counted: Counts) -> str:
    total = counted.answered + counted.failed
    late = f", {counted.late} of them only because they took too long" if counted.late else ""
    numbers = f"{counted.failed} of {total} requests failed{late}, {counted.restarts} deaths"
    return numbers + trial_lease.describe_probes(update)


def _judge_answers(
    judgement: TrialJudgement, update: Update, server: ServerState, trial: TrialSnapshot, rules: Rules
) -> TrialJudgement:
    """The same judgement with what the compared answers say: failures weigh more, cost and lack of data less."""
    if not compare.is_compared(update, rules.compare):
        return judgement
    changes = compare.judge_changes(update, server, trial.load_id, rules.compare)
    found = judgement.evidence
    judgement = replace(
        judgement, evidence=replace(found, measured=(*found.measured, *changes.measured), changes=changes.rows)
    )
    if judgement.verdict in (TrialVerdict.ROLL_BACK, TrialVerdict.DOES_NOT_FIT):
        return judgement
    if changes.beyond:
        reason = HeldFor.CHANGED_ANSWERS.value
        return replace(judgement, verdict=TrialVerdict.CHANGED_ANSWERS, reason=reason, message=changes.beyond)
    answered = subtract_counts(transitions.find_counts(update, server), update.at_activation).answered
    is_short = server.shadow is not None and changes.compared < rules.compare.min_compared <= answered
    longest = rules.observe.max_seconds
    if not changes.is_doubtful:  # a full machine compares nothing, however long it is waited for
        longest = min(longest, 2 * rules.observe.window_seconds) if is_short else 0.0
    if judgement.verdict in _KEPT and update.stage_seconds < longest:
        message = f"{judgement.message}; {changes.compared} answers were compared, which is not enough"
        return replace(judgement, verdict=TrialVerdict.WAIT, message=message)
    return judgement


def _find_early_end(update: Update, counted: Counts, rules: ObserveRules) -> str:
    """Reason to end the trial before its window is over; empty if there is none."""
    total = counted.answered + counted.failed
    if counted.not_finite + update.probes_not_finite > rules.max_not_finite:
        return "NOT_FINITE"
    if counted.restarts > rules.max_restarts:
        return "RUNNER_DIED"
    if counted.failed >= rules.burst_failures and counted.failed >= rules.burst_share * total:
        return "BURST"
    asked = update.probes_good + update.probes_bad
    if update.probes_bad >= rules.burst_failures and update.probes_bad >= rules.burst_share * asked:
        return "PROBES_FAILED"
    return ""


def _judge_window(  # noqa: PLR0911  one line a case
    update: Update, counted: Counts, rules: ObserveRules, numbers: str, evidence: Evidence
) -> TrialJudgement:
    """The verdict by time and number of answers, if no measured number exceeds its threshold."""
    total = counted.answered + counted.failed
    if update.stage_seconds < rules.window_seconds:
        return TrialJudgement(TrialVerdict.WAIT, message=numbers, evidence=evidence)
    if total >= rules.min_answers:
        return TrialJudgement(TrialVerdict.KEEP, "KEPT", numbers, evidence)
    if rules.probes_allowed:
        asked = update.probes_good + update.probes_bad
        if total + asked < rules.min_answers and update.stage_seconds < rules.window_seconds + rules.max_seconds:
            return TrialJudgement(TrialVerdict.PROBE, message=numbers, evidence=evidence)
        failed = counted.failed + update.probes_bad
        if total + asked < rules.min_answers:
            return TrialJudgement(TrialVerdict.NO_DATA, "NO_DATA", "no requests and no probes were answered", evidence)
        most = max(1.0, rules.error_margin * (total + asked))
        if failed <= most:
            message = f"{numbers}, {update.probes_good} of {asked} probes answered"
            return TrialJudgement(TrialVerdict.KEEP_ON_PROBES, "KEPT_ON_PROBES", message, evidence)
        verdict = TrialVerdict.SLOWER if failed - counted.late <= most else TrialVerdict.ROLL_BACK
        message = f"{failed} of {total + asked} requests and probes failed; {numbers}"
        return TrialJudgement(verdict, "PROBES_FAILED", message, evidence)
    if update.stage_seconds >= rules.max_seconds:
        message = f"only {total} requests came, {rules.min_answers} are needed for a verdict"
        return TrialJudgement(TrialVerdict.NO_DATA, "NO_DATA", message, evidence)
    return TrialJudgement(TrialVerdict.WAIT, message=numbers, evidence=evidence)


def _choose_verdict(update: Update, counted: Counts, rules: ObserveRules) -> TrialVerdict:
    """DOES_NOT_FIT if most failures in time are out-of-memory errors; SLOWER if only late ones are too many.

    A machine that pauses makes a good revision late, too, and the previous slot has no such limit to be compared with.
    """
    in_time = leave_out_late(counted)
    if in_time.out_of_memory > 0 and in_time.out_of_memory * 2 >= in_time.failed and not in_time.not_finite:
        return TrialVerdict.DOES_NOT_FIT
    is_late = counted.late > 0 and not _is_failing(update, in_time, rules)
    return TrialVerdict.SLOWER if is_late else TrialVerdict.ROLL_BACK


def _is_failing(update: Update, counted: Counts, rules: ObserveRules) -> bool:
    """Whether these counts alone end the trial."""
    is_enough = counted.answered + counted.failed >= rules.min_answers
    is_beyond = is_enough and not all(row.passed for row in _measure(update, counted, rules))
    return is_beyond or bool(_find_early_end(update, counted, rules))


def _measure(update: Update, counted: Counts, rules: ObserveRules) -> tuple[Measured, ...]:
    total = counted.answered + counted.failed
    errors = counted.failed / total if total else 0.0
    share = Measured("error_share", errors, None, rules.error_margin, errors <= rules.error_margin)
    asked = update.probes_good + update.probes_bad
    if asked and total < rules.min_answers:  # judged with the probes, of which one may fail
        failed, allowed = counted.failed + update.probes_bad, max(1.0, rules.error_margin * (total + asked))
        share = Measured("failed_with_probes", failed, None, allowed, failed <= allowed)
    deaths, most = counted.restarts, rules.max_restarts
    return (share, Measured("runner_deaths", deaths, None, most, deaths <= most))


def _compare_with_previous(
    counted: Counts, server: ServerState, trial: TrialSnapshot, rules: ObserveRules, device: str
) -> list[Measured]:
    """Cost and latency compared with the previous slot's, if there are enough measurements of both.

    `device` is the trial's, if the update names one.
    """
    slot = next((row for row in server.slots if row.load_id and row.load_id == trial.previous_load_id), None)
    previous = trial.baseline if slot is None else server.counts_of(slot.bundle_digest, slot.device)
    rows = []
    costs_before = previous.costs
    if (
        slot is not None and device and slot.bundle_digest != trial.bundle_digest
    ):  # over a bridge: as on the same device
        costs_before = server.counts_of(slot.bundle_digest, device).costs
    costs = compare_costs(counted.costs, costs_before, rules.max_cost_factor)
    batches = 0 if costs is None else min(costs.candidate_batches, costs.active_batches)
    if costs is not None and batches >= rules.min_compared and costs.compared_seconds >= rules.min_cost_seconds:
        most = costs.active_seconds * rules.max_cost_factor
        is_good = costs.by_chance > rules.significance
        rows.append(Measured(COST, costs.candidate_seconds, costs.active_seconds, most, is_good))
        rows.append(Measured("slower_by_chance", costs.by_chance, None, rules.significance, is_good))
    beside = subtract_counts(previous, trial.baseline)
    if min(sum(beside.latency), sum(counted.latency)) >= rules.min_compared and beside.latency_bounds:
        slow, slow_beside = percentile(counted, 0.95), percentile(beside, 0.95)
        longest = max(slow_beside * rules.max_latency_factor, slow_beside + rules.latency_margin_seconds)
        rows.append(Measured(LATENCY, slow, slow_beside, longest, slow <= longest))
    return rows


_UNATTRIBUTED_ENDS = frozenset({LEASE_EXPIRED, YIELDED})  # the updater was away; the slot was needed


def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Effect | Wait | Transition:
    """Judge the trial: end it with a verdict, or extend its lease, probe it, or wait."""
    update, server = record.under_way, facts.server
    if server is None:
        return Wait(rules.observe.look_seconds, "the server cannot be reached")
    reason = find_end_reason(record, facts)
    if reason:
        return end_trial(record, facts, rules, reason)
    trial = server.trial
    if trial is None:
        raise RuntimeError("a trial that is not over is there")
    judgement = _judge_answers(judge(update, server, trial, adapt_rules(update, rules)), update, server, trial, rules)
    if judgement.verdict in _KEPT and update.has_more_steps:
        return rollout.advance(record, facts, judgement.message, judgement.evidence)
    if judgement.verdict in _KEPT:
        return _keep(record, facts, judgement)
    if judgement.verdict not in _UNDECIDED:
        return _take_back(record, facts, rules, judgement)
    return _decide_undecided(update, server, trial, judgement, rules)


def _decide_undecided(
    update: Update, server: ServerState, trial: TrialSnapshot, judgement: TrialJudgement, rules: Rules
) -> Effect | Wait:
    """The next step of a trial that goes on."""
    if server.is_draining:
        return Wait(rules.observe.look_seconds, "the server is about to end")
    is_probing = judgement.verdict is TrialVerdict.PROBE
    is_short = trial.lease_left_seconds < rules.observe.trial_lease_seconds / 2
    if is_short or (is_probing and not trial_lease.is_fresh(trial, rules.observe)):
        return trial_lease.renew(update, server, trial, rules.observe)
    if trial.percent != update.percent:
        return SetPercent(trial.load_id, update.percent, update.update_id, server.generation)
    if is_probing:
        return trial_lease.build_probe(trial, rules.observe)
    return Wait(rules.observe.look_seconds, judgement.message)


def apply_result(record: ModelRecord, effect: Effect, result: Result, facts: Facts, rules: Rules) -> Transition:
    """Count the probes' answers, or the renewed lease; a failed effect needs no action before the next facts."""
    if isinstance(result, Probed):
        return Transition(trial_lease.count_probes(record, result))
    return reconcile.apply_result(record, effect, result, facts, rules)


def find_end_reason(record: ModelRecord, facts: Facts) -> str:
    """Reason for the end of the update's trial; empty if it goes on or the server cannot be reached."""
    update, server = record.under_way, facts.server
    if server is None:
        return ""
    if server.incarnation != update.server_incarnation:
        return "SERVER_STOPPED"
    if transitions.is_on_trial(update, server):
        return ""
    last = server.last_trial
    is_ours = server.trial is None and last is not None and last.bundle_digest == update.bundle_digest
    return last.outcome if is_ours and last is not None else "TRIAL_UNKNOWN"


def end_trial(record: ModelRecord, facts: Facts, rules: Rules, reason: str) -> Transition:
    """End an update whose trial ended without a commit; the reason decides whether the candidate is at fault."""
    update = record.under_way
    if reason == "SERVER_STOPPED":
        return _apply_server_stopped(record, facts, rules)
    if _ran_out_of_memory(record, facts):
        return _hold_for_memory(record, facts)
    if reason == LEASE_EXPIRED and update.kind is UpdateKind.FAILBACK:
        return transitions.fail_failback(record, facts, reason, "its trial ran out before there was a verdict")
    if reason in _UNATTRIBUTED_ENDS:
        return transitions.retry(record, facts, reason, "the trial ended for a reason outside the revision")
    message = f"the trial of {update.revision} was ended by another client of the server"
    return transitions.hold(record, facts, HeldFor.TAKEN_BACK, message)


def adapt_rules(update: Update, rules: Rules) -> ObserveRules:
    """The rules for an update's trial.

    The bundle of a failback is known to be good, so a verdict needs no requests, and one crash of the runner or one
    answer with NaN is enough to fail it.
    """
    if update.kind is not UpdateKind.FAILBACK:
        return rules.observe
    return replace(rules.observe, probes_allowed=True, max_restarts=0, max_not_finite=0)


def _keep(record: ModelRecord, facts: Facts, judgement: TrialJudgement) -> Transition:
    """The candidate has passed its trial: commit it."""
    record = transitions.enter(
        record,
        Stage.COMMITTING,
        on_probes=judgement.verdict is TrialVerdict.KEEP_ON_PROBES,
        reason=judgement.reason,
        message=judgement.message,
    )
    return transitions.with_event(record, facts, "trial_kept", judgement.message, evidence=judgement.evidence)


def _take_back(record: ModelRecord, facts: Facts, rules: Rules, judgement: TrialJudgement) -> Transition:
    reason, message, evidence = judgement.reason, judgement.message, judgement.evidence
    if judgement.verdict is TrialVerdict.ROLL_BACK:
        return transitions.refuse(record, facts, rules, reason, message, evidence=evidence, outcome=Outcome.ROLLED_BACK)
    return transitions.hold(record, facts, _HELD_FOR[judgement.verdict], message, evidence=evidence)


def _apply_server_stopped(record: ModelRecord, facts: Facts, rules: Rules) -> Transition:
    """Retry after an orderly stop; a crash counts against the candidate, at a first install only if it repeats."""
    update, server = record.under_way, facts.server
    if update.orderly or (server is not None and server.last_ended_orderly):
        return transitions.retry(record, facts, "SERVER_STOPPED", "the server was stopped in good order")
    crashes, is_restarted = update.crashes + 1, facts.has_machine_restarted(update.boot_id)
    record = record.with_update(crashes=crashes)
    what = "the machine was restarted" if is_restarted else "the server crashed"
    message = f"{what} while {update.revision} answered on trial"
    if record.committed is not None and (not is_restarted or crashes >= rules.max_crashes):
        return transitions.refuse(record, facts, rules, "SERVER_CRASHED", message, outcome=Outcome.ROLLED_BACK)
    if crashes >= rules.max_crashes:
        return transitions.hold(record, facts, HeldFor.SERVER_CRASHED, f"{message}, {crashes} times")
    return transitions.retry(record, facts, "SERVER_STOPPED" if is_restarted else "SERVER_CRASHED", message)


def _ran_out_of_memory(record: ModelRecord, facts: Facts) -> bool:
    """Whether the server ended the trial because memory ran out, and not because the slot was needed."""
    last = None if facts.server is None else facts.server.last_trial
    if last is None or last.reason not in MEMORY_REASONS:
        return False
    return last.outcome != YIELDED or record.under_way.kind is UpdateKind.FAILBACK


def _hold_for_memory(record: ModelRecord, facts: Facts) -> Transition:
    update = record.under_way
    active = None if facts.server is None else facts.server.active
    device = update.device or ("its device" if active is None else active.device)
    message = f"{update.revision} ran out of memory on {device} while it answered on trial"
    return transitions.hold(record, facts, HeldFor.DOES_NOT_FIT, message)
