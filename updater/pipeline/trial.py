"""What the front's numbers say of a revision on trial: WAIT, KEEP or ROLL_BACK. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

from updater.evidence import Evidence, Measured
from updater.pipeline import candidate
from updater.ports import FrontState, TrialSeen
from updater.record import Counts, Update
from updater.rules import ObserveRules

# Upper bounds of the front's latency buckets, in seconds; the last bucket has none.
LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class TrialVerdict(StrEnum):
    """What follows from a trial so far."""

    WAIT = "WAIT"
    PROBE = "PROBE"  # no traffic: ask it something
    KEEP = "KEEP"
    KEEP_ON_PROBES = "KEEP_ON_PROBES"
    ROLL_BACK = "ROLL_BACK"  # it is to blame
    DOES_NOT_FIT = "DOES_NOT_FIT"  # out of memory: a person decides
    NO_DATA = "NO_DATA"  # nothing can be said: a person decides


@dataclass(frozen=True, slots=True)
class TrialJudgement:
    """A verdict and the numbers that it rests on."""

    verdict: TrialVerdict
    reason: str = ""
    message: str = ""
    evidence: Evidence = field(default_factory=Evidence)


def judge(update: Update, front: FrontState, trial: TrialSeen, rules: ObserveRules) -> TrialJudgement:
    """Judge by what was counted since activation, against the baseline frozen then."""
    seen = since(candidate.counts_of(update, front), update.at_activation)
    total = seen.answered + seen.failed
    is_enough = total >= rules.min_answers
    evidence = Evidence(_measured(update, seen, trial.baseline, rules), on_probes=not is_enough)
    numbers = f"{seen.failed} of {total} requests failed, {seen.restarts} deaths"
    at_once = _at_once(update, seen, rules)
    if at_once:
        return TrialJudgement(_blame(seen), at_once, numbers, evidence)
    if is_enough:
        wrong = next((row for row in evidence.measured if not row.passed), None)
        if wrong is not None:
            message = f"{wrong.name} {wrong.candidate:.3f}, allowed {wrong.threshold:.3f}; {numbers}"
            return TrialJudgement(_blame(seen), wrong.name.upper(), message, evidence)
    return _patience(update, seen, rules, numbers, evidence)


def since(now: Counts, before: Counts) -> Counts:
    """What was counted between two looks in one life of the front."""
    latency = tuple(max(0, a - b) for a, b in zip(now.latency, before.latency or (0,) * len(now.latency), strict=False))
    return Counts(
        answered=max(0, now.answered - before.answered),
        failed=max(0, now.failed - before.failed),
        not_finite=max(0, now.not_finite - before.not_finite),
        out_of_memory=max(0, now.out_of_memory - before.out_of_memory),
        restarts=max(0, now.restarts - before.restarts),
        latency=latency,
    )


def percentile(latency: tuple[int, ...], share: float) -> float:
    """Seconds in which a share of answers came, from bucket counts; 0 for none."""
    wanted, seen = share * sum(latency), 0.0
    if wanted <= 0:
        return 0.0
    lower = 0.0
    for count, upper in zip(latency, (*LATENCY_BOUNDS, 2 * LATENCY_BOUNDS[-1]), strict=False):
        if count and seen + count >= wanted:
            return lower + (upper - lower) * (wanted - seen) / count
        seen, lower = seen + count, upper
    return lower


def _at_once(update: Update, seen: Counts, rules: ObserveRules) -> str:
    """Why no more waiting is needed; empty if it is. One failure of one request is no evidence."""
    total = seen.answered + seen.failed
    if seen.not_finite > rules.max_not_finite:
        return "NOT_FINITE"
    if seen.restarts > rules.max_restarts:
        return "RUNNER_DIED"
    if seen.failed >= rules.burst_failures and seen.failed >= rules.burst_share * total:
        return "BURST"
    asked = update.probes_good + update.probes_bad
    if update.probes_bad >= rules.burst_failures and update.probes_bad >= rules.burst_share * asked:
        return "PROBES_FAILED"
    return ""


def _patience(update: Update, seen: Counts, rules: ObserveRules, numbers: str, evidence: Evidence) -> TrialJudgement:  # noqa: PLR0911  one line a case
    """Nothing speaks against it so far: is that enough to keep it?"""
    total = seen.answered + seen.failed
    if update.stage_seconds < rules.window_seconds:
        return TrialJudgement(TrialVerdict.WAIT, message=numbers, evidence=evidence)
    if total >= rules.min_answers:
        return TrialJudgement(TrialVerdict.KEEP, "KEPT", numbers, evidence)
    if rules.probes_allowed:
        asked = update.probes_good + update.probes_bad
        if total + asked < rules.min_answers and update.stage_seconds < rules.window_seconds + rules.max_seconds:
            return TrialJudgement(TrialVerdict.PROBE, message=numbers, evidence=evidence)
        failed = seen.failed + update.probes_bad
        if total + asked < rules.min_answers:
            return TrialJudgement(TrialVerdict.NO_DATA, "NO_DATA", "neither requests nor probes got through", evidence)
        if failed <= max(1.0, rules.error_margin * (total + asked)):
            message = f"{numbers}, {update.probes_good} of {asked} probes answered"
            return TrialJudgement(TrialVerdict.KEEP_ON_PROBES, "KEPT_ON_PROBES", message, evidence)
        return TrialJudgement(TrialVerdict.ROLL_BACK, "PROBES_FAILED", f"{failed} of {total + asked} failed", evidence)
    if update.stage_seconds >= rules.max_seconds:
        message = f"only {total} requests came, {rules.min_answers} are needed for a verdict"
        return TrialJudgement(TrialVerdict.NO_DATA, "NO_DATA", message, evidence)
    return TrialJudgement(TrialVerdict.WAIT, message=numbers, evidence=evidence)


def _blame(seen: Counts) -> TrialVerdict:
    """Failures that are all for want of memory condemn no model."""
    is_memory = seen.out_of_memory > 0 and seen.out_of_memory * 2 >= seen.failed and not seen.not_finite
    return TrialVerdict.DOES_NOT_FIT if is_memory else TrialVerdict.ROLL_BACK


def _measured(update: Update, seen: Counts, baseline: Counts, rules: ObserveRules) -> tuple[Measured, ...]:
    total, before = seen.answered + seen.failed, baseline.answered + baseline.failed
    errors = seen.failed / total if total else 0.0
    errors_before = baseline.failed / before if before else 0.0
    most = errors_before + rules.error_margin
    share = Measured("error_share", errors, errors_before if before else None, most, errors <= most)
    asked = update.probes_good + update.probes_bad
    if asked and total < rules.min_answers:  # judged with the probes, of which one may fail
        failed, allowed = seen.failed + update.probes_bad, max(1.0, rules.error_margin * (total + asked))
        share = Measured("failed_with_probes", failed, None, allowed, failed <= allowed)
    rows = [
        share,
        Measured("runner_deaths", seen.restarts, None, rules.max_restarts, seen.restarts <= rules.max_restarts),
    ]
    if sum(baseline.latency) >= rules.min_answers and sum(seen.latency) >= rules.min_answers:
        slow, slow_before = percentile(seen.latency, 0.95), percentile(baseline.latency, 0.95)
        longest = max(slow_before * rules.max_latency_factor, LATENCY_BOUNDS[0])
        rows.append(Measured("latency_p95_seconds", slow, slow_before, longest, slow <= longest))
    return tuple(rows)
