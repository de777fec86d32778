"""Verdicts of the gate and of a trial, by their numbers."""

from dataclasses import replace
from random import Random

import pytest

from common.answers import TASK_ANSWERS
from common.engine_files import Task
from inference.server.control.report import build_stats
from inference.server.model.stats import RevisionStats, StatsKey
from tests.updater.core.world import World
from updater.compose import build_rules
from updater.control.snapshot import convert_counts
from updater.core.breaker import BreakerName
from updater.core.changes import at_least
from updater.core.comparison import AnswerComparison, GoldenAnswer
from updater.core.counts import CostBucket, Counts, compare_costs, percentile, subtract_counts, t_tail
from updater.core.effects import EffectFailure, FailureKind
from updater.core.facts import (
    CommandKind,
    OperatorCommand,
    RevisionSnapshot,
    ServerState,
    ShadowSnapshot,
    SlotSnapshot,
    TrialSnapshot,
)
from updater.core.golden import (
    GateAnswers,
    GoldenQuestion,
    classify_difference,
)
from updater.core.record import Differing, HeldFor, Update, UpdateKind
from updater.core.rules import DEVICE_BREAKER, GateRules, ObserveRules, Rules
from updater.settings import UpdaterSection
from updater.stages.gate_verdict import (
    LATE_ANSWERS,
    GateVerdict,
    is_one_sided,
    judge,
    under_by_chance,
    worse_by_chance,
)
from updater.stages.observe import TrialVerdict
from updater.stages.observe import judge as judge_trial

RULES = GateRules()
WATCHED = ObserveRules(window_seconds=30.0, max_seconds=120.0, min_answers=50)


def answers(active: str, candidate: str, **changes: object) -> GateAnswers:
    """One question a letter: `r` right, `w` wrong, `n` NaN, `x` failed; with an expectation."""
    said = {
        "r": GoldenAnswer("yes"),
        "w": GoldenAnswer("no"),
        "n": GoldenAnswer(failure="NOT_FINITE"),
        "x": GoldenAnswer(failure="ENGINE_FAILED"),
    }
    asked = [
        GoldenQuestion(str(n), "?", "yes", said[c], said[a])
        for n, (a, c) in enumerate(zip(active, candidate, strict=True))
    ]
    return replace(GateAnswers("golden", "cpu", "float32", tuple(asked)), **changes)  # type: ignore[arg-type]


def test_the_exact_tests_agree_with_tables() -> None:
    """McNemar's and the binomial, one-sided."""
    assert pytest.approx(0.5**5) == worse_by_chance(5, 0)
    assert pytest.approx(0.0546875) == worse_by_chance(8, 2)
    assert worse_by_chance(0, 7) == 1.0
    assert pytest.approx(0.01386, abs=1e-5) == under_by_chance(10, 20, 0.75)
    assert 0.0 <= at_least(5000, 10_000, 0.5) <= 1.0
    assert pytest.approx(0.504, abs=1e-3) == at_least(5000, 10_000, 0.5)


@pytest.mark.parametrize(
    ("active", "candidate", "verdict"),
    [
        ("r" * 100, "r" * 100, GateVerdict.PASS),
        ("r" * 80 + "w" * 20, "r" * 90 + "w" * 10, GateVerdict.PASS),
        ("r" * 100, "r" * 99 + "w", GateVerdict.PASS),  # exactly one point
        ("r" * 100, "r" * 97 + "w" * 3, GateVerdict.HOLD),  # 12.5 % by chance
        ("r" * 100, "r" * 95 + "w" * 5, GateVerdict.REFUSE),  # 3 % by chance
        ("r" * 94 + "w" * 6, "w" * 6 + "r" * 94, GateVerdict.HOLD),  # as good, but six were right before
        ("r" * 100, "r" * 99 + "n", GateVerdict.REFUSE),
        ("r" * 99 + "x", "r" * 99 + "x", GateVerdict.PASS),  # what both fail is the item's fault
        ("", "", GateVerdict.HOLD),
    ],
)
def test_golden_answers_are_judged_by_accuracy_flips_and_chance(
    active: str, candidate: str, verdict: GateVerdict
) -> None:
    """Refused where it is worse beyond chance, held where it may be chance."""
    assert verdict is judge(answers(active, candidate), RULES).verdict


@pytest.mark.fault("T10")
@pytest.mark.parametrize("reason", ["DEADLINE_EXPIRED", "PREPARE_TIMEOUT"])
@pytest.mark.parametrize(("late", "total"), [(1, 20), (5, 400), (16, 400), (16, 16)])
def test_golden_questions_that_are_only_late_are_no_wrong_answers(reason: str, late: int, total: int) -> None:
    """Beside an active model and at a first install; a candidate that is worse without them is refused."""
    good, worse = (
        answers("r" * total, "r" * total),
        answers("r" * total, "r" * (total - total // 4) + "w" * (total // 4)),
    )
    for is_first in (False, True):
        rows = [_delay(row, reason, is_first=is_first) for row in good.questions[:late]]
        rest = [replace(row, active=None) if is_first else row for row in good.questions[late:]]
        judgement = judge(replace(good, questions=(*rows, *rest), min_accuracy=0.99), RULES)
        assert (judgement.verdict, judgement.reason) == (GateVerdict.HOLD, LATE_ANSWERS)
        assert judgement.held_for is HeldFor.INCONCLUSIVE
    if late < total:
        rows = [_delay(row, reason) for row in worse.questions[:late]]
        judgement = judge(replace(worse, questions=(*rows, *worse.questions[late:])), RULES)
        assert (judgement.verdict, judgement.reason) == (GateVerdict.REFUSE, "ACCURACY")
        failed = replace(good.questions[-1], candidate=GoldenAnswer(failure="ENGINE_FAILED"))
        judgement = judge(replace(good, questions=(*rows, failed)), RULES)
        assert (judgement.verdict, judgement.reason) == (GateVerdict.REFUSE, "ANSWERS_FAILED")


@pytest.mark.parametrize("reason", ["RUNNER_DIED", "PREPARE_TIMEOUT", "OUT_OF_MEMORY"])
@pytest.mark.parametrize("is_expected", [True, False])
def test_what_the_active_model_could_not_answer_is_no_wrong_answer_of_it(reason: str, *, is_expected: bool) -> None:
    """Such questions are left out; if nothing is left, nothing was compared."""

    def judge_with(missing: int, candidate: str) -> tuple[GateVerdict, str]:
        row = answers("r" * 40, candidate)
        found = [
            replace(
                one,
                expected=one.expected if is_expected else "",
                active=GoldenAnswer(failure=reason) if number < missing else one.active,
            )
            for number, one in enumerate(row.questions)
        ]
        judgement = judge(replace(row, questions=tuple(found)), RULES)
        return judgement.verdict, judgement.reason

    worse = "r" * 30 + "w" * 10
    assert judge_with(0, worse) == judge_with(4, worse)
    assert judge_with(4, worse)[0] in (GateVerdict.REFUSE, GateVerdict.HOLD)
    assert judge_with(4, "r" * 40)[0] is GateVerdict.PASS
    row = answers("r" * 40, worse)
    lost = [replace(one, active=GoldenAnswer(failure=reason)) for one in row.questions]
    assert is_one_sided(replace(row, questions=tuple(lost)))
    assert not is_one_sided(replace(row, questions=(*lost[:20], *row.questions[20:])))
    few = judge(replace(row, questions=(*row.questions[:5], *lost[5:]), min_accuracy=0.9), RULES)
    assert (few.verdict, few.reason) == (GateVerdict.REFUSE, "BELOW_MIN_ACCURACY")


def _delay(row: GoldenQuestion, reason: str, *, is_first: bool = False) -> GoldenQuestion:
    """The same question, for which the candidate had too little time."""
    return replace(row, candidate=GoldenAnswer(failure=reason), active=None if is_first else row.active)


def test_a_first_install_is_judged_by_expectation_alone() -> None:
    """The accuracy is compared with the set's min_accuracy."""
    alone = answers("r" * 40, "r" * 30 + "w" * 10)
    asked = tuple(replace(row, active=None) for row in alone.questions)

    assert GateVerdict.PASS is judge(replace(alone, questions=asked, min_accuracy=0.7), RULES).verdict
    assert GateVerdict.REFUSE is judge(replace(alone, questions=asked, min_accuracy=0.9), RULES).verdict
    assert HeldFor.NOISE is judge(replace(alone, questions=asked, min_accuracy=0.77), RULES).held_for


@pytest.mark.parametrize(
    ("changes", "verdict", "held_for"),
    [
        ({"candidate_seconds": 1.6, "active_seconds": 1.0}, GateVerdict.HOLD, HeldFor.SLOWER),
        ({"candidate_seconds": 1.4, "active_seconds": 1.0}, GateVerdict.PASS, None),
        ({"candidate_seconds": 0.04, "active_seconds": 0.01}, GateVerdict.PASS, None),  # too little for a comparison
        ({"candidate_bytes": 11, "planned_bytes": 10}, GateVerdict.HOLD, HeldFor.DOES_NOT_FIT),
    ],
)
def test_cost_and_memory_are_compared_with_their_limits(
    changes: dict[str, float], verdict: GateVerdict, held_for: HeldFor | None
) -> None:
    """In the runner's device seconds and bytes."""
    judgement = judge(answers("r" * 20, "r" * 20, **changes), RULES)
    assert (verdict, held_for) == (judgement.verdict, judgement.held_for)


def trial(
    seconds: float,
    seen: Counts,
    baseline: Counts | None = None,
    rules: ObserveRules = WATCHED,
    beside: Counts | None = None,
    awaiting: int = 0,
    copies: Counts | None = None,
    **changes: object,
) -> TrialVerdict:
    """Judge a trial after so long, with these counts; `beside` is what the previous slot has counted until now."""
    update = Update("u", UpdateKind.RELEASE, "1.1.0", World().clock.now(), bundle_digest="b", stage_seconds=seconds)
    rows = (RevisionSnapshot("b", "cpu", seen), RevisionSnapshot("a", "cpu", beside or Counts()))
    previous = SlotSnapshot("p", "a", "cpu", "float32", "LOADED", "PREVIOUS")
    frozen = Counts(answered=1000) if baseline is None else baseline
    on_trial = TrialSnapshot("l", "b", "p", 60.0, frozen, awaiting)
    shadow = None if copies is None else ShadowSnapshot("l", AnswerComparison(), copies.failed, copies)
    server = ServerState("life", 1, (previous,), "", is_ready=True, stats=rows, trial=on_trial, shadow=shadow)
    changed = replace(update, **changes)  # type: ignore[arg-type]
    return judge_trial(changed, server, on_trial, rules).verdict


@pytest.mark.fault("S13")
@pytest.mark.parametrize(
    ("seconds", "seen", "verdict"),
    [
        (1.0, Counts(answered=10, failed=1), TrialVerdict.WAIT),
        (1.0, Counts(failed=1), TrialVerdict.WAIT),
        (1.0, Counts(answered=4, failed=5), TrialVerdict.ROLL_BACK),  # a burst
        (1.0, Counts(answered=900, failed=3, not_finite=3), TrialVerdict.ROLL_BACK),  # NaN is no bad luck
        (1.0, Counts(answered=60, failed=2), TrialVerdict.ROLL_BACK),  # enough answers for a share
        (1.0, Counts(answered=900, failed=2, restarts=2), TrialVerdict.ROLL_BACK),
        (1.0, Counts(failed=5, out_of_memory=5), TrialVerdict.DOES_NOT_FIT),
        (29.0, Counts(answered=5000), TrialVerdict.WAIT),
        (31.0, Counts(answered=5000, failed=20), TrialVerdict.KEEP),
        (31.0, Counts(answered=3), TrialVerdict.PROBE),
    ],
)
def test_a_trial_is_judged_by_what_was_counted(seconds: float, seen: Counts, verdict: TrialVerdict) -> None:
    """With a least number of answers, and at once on a burst."""
    assert verdict is trial(seconds, seen)


@pytest.mark.parametrize("baseline", [Counts(), Counts(answered=1000), Counts(answered=950, failed=50)])
def test_what_the_previous_model_failed_before_allows_a_trial_nothing(baseline: Counts) -> None:
    """Only what the previous slot has answered counts as a failure: a bad afternoon before the trial is no measure."""
    assert TrialVerdict.ROLL_BACK is trial(31.0, Counts(answered=960, failed=40), baseline)
    assert TrialVerdict.KEEP is trial(31.0, Counts(answered=990, failed=10), baseline)


@pytest.mark.fault("T10")
@pytest.mark.parametrize(
    ("seconds", "seen", "verdict"),
    [
        (1.0, Counts(answered=20, failed=8, late=8), TrialVerdict.SLOWER),  # a pause with eight calls in flight
        (1.0, Counts(answered=60, failed=2, late=2), TrialVerdict.SLOWER),  # a share of enough requests
        (1.0, Counts(failed=5, late=5), TrialVerdict.SLOWER),  # a hang, before its runner is ended
        (1.0, Counts(answered=20, failed=9, late=8, restarts=1), TrialVerdict.SLOWER),
        (1.0, Counts(answered=20, failed=10, late=8, restarts=2), TrialVerdict.ROLL_BACK),  # it hung twice
        (1.0, Counts(answered=10, failed=13, late=8), TrialVerdict.ROLL_BACK),  # a burst without them
        (1.0, Counts(answered=90, failed=12, late=9), TrialVerdict.ROLL_BACK),  # too large a share without them
        (1.0, Counts(answered=20, failed=11, late=8, not_finite=3), TrialVerdict.ROLL_BACK),
        (1.0, Counts(failed=12, late=6, out_of_memory=6), TrialVerdict.DOES_NOT_FIT),
        (1.0, Counts(failed=6, late=3, out_of_memory=3), TrialVerdict.DOES_NOT_FIT),  # an approval would not help
        (1.0, Counts(answered=20, failed=4, late=4), TrialVerdict.WAIT),
        (31.0, Counts(answered=5000, failed=20, late=20), TrialVerdict.KEEP),
    ],
)
def test_what_was_only_too_late_is_held(seconds: float, seen: Counts, verdict: TrialVerdict) -> None:
    """The trial ends as soon, but nothing is blamed that a busy or paused machine may have done."""
    assert verdict is trial(seconds, seen)


@pytest.mark.fault("T10")
def test_what_is_late_ends_no_trial_that_may_be_slower() -> None:
    """A person has approved it; other failures count as before."""
    assert trial(31.0, Counts(answered=90, failed=10, late=10)) is TrialVerdict.SLOWER
    assert trial(31.0, Counts(answered=90, failed=10, late=10), may_be_slower=True) is TrialVerdict.KEEP
    assert trial(1.0, Counts(failed=8, late=8), may_be_slower=True) is TrialVerdict.WAIT
    assert trial(31.0, Counts(failed=9, late=9), may_be_slower=True, probes_good=50) is TrialVerdict.KEEP_ON_PROBES
    assert trial(1.0, Counts(answered=10, failed=13, late=8), may_be_slower=True) is TrialVerdict.ROLL_BACK
    assert trial(1.0, Counts(failed=8, late=8, restarts=2), may_be_slower=True) is TrialVerdict.ROLL_BACK


@pytest.mark.fault("T10")
def test_late_requests_beside_good_probes_are_held() -> None:
    """Three of fifty; other failures are blamed."""
    assert TrialVerdict.SLOWER is trial(31.0, Counts(failed=3, late=3), probes_good=47)
    assert TrialVerdict.ROLL_BACK is trial(31.0, Counts(failed=3, late=1), probes_good=47)
    assert TrialVerdict.KEEP_ON_PROBES is trial(31.0, Counts(failed=1, late=1), probes_good=49)


def test_the_servers_reasons_say_what_was_too_late() -> None:
    """Calls that a trial had for too long, and pictures that got no decoder in time; since activation alone."""
    row = RevisionStats(StatsKey("b", "cpu"), deaths=1)
    for reason in ("TOO_SLOW", "TOO_SLOW", "PREPARE_TIMEOUT", "ENGINE_FAILED", "RUNNER_DIED"):
        row.count_failure(reason)
    counts = convert_counts(build_stats(row))
    assert (counts.failed, counts.late, counts.restarts) == (5, 3, 1)
    assert subtract_counts(counts, Counts(failed=2, late=1)) == replace(counts, failed=3, late=2)


@pytest.mark.parametrize(
    ("copies", "verdict"),
    [
        (Counts(answered=200), TrialVerdict.KEEP),
        (Counts(answered=7, failed=3, not_finite=3), TrialVerdict.ROLL_BACK),
        (Counts(answered=70, failed=3), TrialVerdict.ROLL_BACK),
        (Counts(answered=400, failed=4), TrialVerdict.KEEP),
        (Counts(failed=5, out_of_memory=5), TrialVerdict.DOES_NOT_FIT),
        (None, TrialVerdict.PROBE),
    ],
)
def test_a_trial_is_judged_by_copies_of_what_the_previous_slot_has_answered(
    copies: Counts | None, verdict: TrialVerdict
) -> None:
    """It gets no request itself: callers' deadlines leave no time for both slots."""
    assert trial(31.0, Counts(), copies=copies) is verdict


def test_a_trial_is_not_kept_while_what_it_failed_waits_for_the_previous_slot() -> None:
    """Whose process may just be starting again: only its answers tell whether the input was at fault."""
    seen = Counts(answered=900)
    assert trial(31.0, seen, awaiting=1) is TrialVerdict.WAIT
    assert trial(31.0 + WATCHED.max_seconds, seen, awaiting=1) is TrialVerdict.KEEP
    assert trial(31.0, seen, awaiting=0) is TrialVerdict.KEEP


BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 1.0)


def latencies(*counts: int) -> Counts:
    """So many answers a bucket of `BOUNDS`."""
    return Counts(answered=sum(counts), latency=(*counts, *(0,) * (7 - len(counts))), latency_bounds=BOUNDS)


def test_latency_is_compared_with_the_previous_slot_during_the_trial_alone() -> None:
    """Not with a baseline of a calmer hour."""
    fast, slow = latencies(100), latencies(0, 0, 0, 0, 0, 100)
    assert trial(31.0, slow, baseline=fast, beside=fast) is TrialVerdict.KEEP
    assert trial(31.0, slow, baseline=fast, beside=latencies(200)) is TrialVerdict.SLOWER
    assert trial(31.0, slow, baseline=fast, beside=latencies(129)) is TrialVerdict.KEEP  # 29 answers are too few
    assert trial(31.0, fast, baseline=slow, beside=latencies(0, 0, 0, 0, 0, 200)) is TrialVerdict.KEEP
    assert percentile(Counts(), 0.95) == 0.0


@pytest.mark.fault("T10")
def test_a_few_milliseconds_more_are_noise_whatever_the_factor() -> None:
    """Eight times later, but by less than the margin; beyond the margin both limits count."""
    before = Counts(answered=1000)
    assert trial(31.0, latencies(0, 0, 100), baseline=before, beside=latencies(100)) is TrialVerdict.KEEP
    assert trial(31.0, latencies(0, 0, 0, 0, 100), baseline=before, beside=latencies(100)) is TrialVerdict.SLOWER


def costs(*row_seconds: float, at_most: int = 1, device: str = "cpu") -> CostBucket:
    """Batches of one size that cost so many seconds a row each."""
    return CostBucket(device, at_most, len(row_seconds), sum(row_seconds), sum(cost * cost for cost in row_seconds))


def spread(mean: float, batches: int) -> tuple[float, ...]:
    """Costs that vary by a third about a mean."""
    return tuple(mean * (1.0 + (number % 5 - 2) / 6) for number in range(batches))


@pytest.mark.fault("S5")
def test_a_trial_with_significantly_higher_cost_is_held_when_its_window_is_over() -> None:
    """Three times the device seconds a row; no sooner, because a repeated test finds noise."""
    before = Counts(answered=1000, costs=(costs(*spread(0.01, 200)),))
    seen = Counts(answered=100, costs=(costs(*spread(0.03, 100)),))
    assert trial(29.0, seen, before, beside=before) is TrialVerdict.WAIT
    assert trial(31.0, seen, before, beside=before) is TrialVerdict.SLOWER
    assert trial(31.0, seen, before, beside=before, may_be_slower=True) is TrialVerdict.KEEP
    assert trial(31.0, seen, before) is TrialVerdict.KEEP  # the previous slot has computed nothing to compare with


@pytest.mark.parametrize(
    "candidate",
    [
        costs(*spread(0.019, 100)),  # less than the factor
        costs(*spread(0.03, 29)),  # too few batches
        costs(*spread(0.03, 30)),  # less than a second of device time
        costs(*(0.01,) * 50, *(0.6,) * 2),  # a mean of three times by two outliers
        costs(*spread(0.03, 100), at_most=8),  # of another size
        costs(*spread(0.03, 100), device="cuda:0"),  # of another device
    ],
)
def test_cost_that_may_be_chance_or_cannot_be_compared_is_kept(candidate: CostBucket) -> None:
    """Another size, another device or two batches are no evidence."""
    before = Counts(answered=1000, costs=(costs(*spread(0.01, 200)),))
    assert trial(31.0, Counts(answered=100, costs=(candidate,)), before, beside=before) is TrialVerdict.KEEP


def test_smaller_batches_than_before_are_no_higher_cost() -> None:
    """A row of a batch of one costs four times a row of a large batch: only equal sizes are compared."""
    large, small = costs(*spread(0.01, 300), at_most=32), costs(*spread(0.04, 40))
    compared = compare_costs((costs(*spread(0.04, 200)),), (large, small), 2.0)
    assert compared is not None
    assert (compared.candidate_batches, compared.active_batches) == (200, 40)
    assert compared.by_chance == pytest.approx(1.0)


def test_the_tail_of_students_t_agrees_with_tables() -> None:
    """For odd, even and many degrees of freedom."""
    assert t_tail(1.0, 1) == pytest.approx(0.25)
    assert t_tail(3.365, 5) == pytest.approx(0.01, abs=1e-5)
    assert t_tail(1.812, 10) == pytest.approx(0.05, abs=1e-4)
    assert t_tail(-1.812, 10) == pytest.approx(0.95, abs=1e-4)
    assert t_tail(2.330, 10**9) == pytest.approx(0.01, abs=1e-4)
    assert compare_costs((), (), 2.0) is None


@pytest.mark.fault("T10")
def test_noise_is_held_no_more_often_than_the_significance() -> None:
    """Equal revisions at the limit of the factor itself, with heavy tails: about one in a hundred; below it none."""
    random = Random(11)

    def batches(mean: float, count: int) -> CostBucket:
        return costs(*(mean * random.lognormvariate(-0.125, 0.5) for _ in range(count)))

    pairs = [(batches(0.02, 60), batches(0.01, 200), batches(0.01, 60)) for _ in range(400)]
    at_limit = [compare_costs((limit,), (before,), 2.0) for limit, before, _ in pairs]
    equal = [compare_costs((same,), (before,), 2.0) for _, before, same in pairs]
    assert sum(row is not None and row.by_chance <= 0.01 for row in at_limit) <= 8
    assert sum(row is not None and row.by_chance <= 0.01 for row in equal) == 0


def test_latency_bounds_are_what_the_server_sends() -> None:
    """Other buckets on the server's side are read as such by the updater, and so are the costs of batches."""
    row = RevisionStats(StatsKey("b", "cpu"), latency_bounds=(1.0, 2.0, 8.0))
    for _ in range(100):
        row.count_answer(3.0)
    row.count_call(0.6, 3)
    row.count_call(0.2, 0)
    counts = convert_counts(build_stats(row))

    assert counts.latency_bounds == (1.0, 2.0, 8.0)
    assert percentile(counts, 0.5) == pytest.approx(5.0)
    (bucket,) = counts.costs
    assert (bucket.device, bucket.at_most_rows, bucket.batches) == ("cpu", 4, 1)
    assert (bucket.row_seconds, bucket.row_seconds_squared) == pytest.approx((0.2, 0.04))
    assert row.copy().costs == row.costs


@pytest.mark.fault("S11")
def test_a_trial_on_probes() -> None:
    """Enough good ones keep it, bad ones do not; none allowed leaves it to a person."""
    assert TrialVerdict.KEEP_ON_PROBES is trial(31.0, Counts(), probes_good=50)
    assert TrialVerdict.ROLL_BACK is trial(31.0, Counts(), probes_good=10, probes_bad=10)
    assert TrialVerdict.NO_DATA is trial(1e6, Counts(), probes_good=1)
    assert TrialVerdict.ROLL_BACK is trial(1.0, Counts(), probes_good=900, probes_bad=3, probes_not_finite=3)
    assert TrialVerdict.ROLL_BACK is trial(1.0, Counts(failed=1, not_finite=1), probes_bad=2, probes_not_finite=2)
    strict = replace(WATCHED, probes_allowed=False)
    assert TrialVerdict.WAIT is trial(31.0, Counts(), rules=strict)
    assert TrialVerdict.NO_DATA is trial(121.0, Counts(), rules=strict)


def test_counts_before_activation_do_not_count_for_the_trial() -> None:
    """A bundle may be tried twice while the server runs."""
    before = Counts(answered=5, failed=9, latency=(5,), costs=(costs(1.0),))
    now = Counts(answered=6, failed=9, latency=(6,), costs=(costs(1.0, 3.0), costs(2.0, at_most=4)))
    added = Counts(answered=1, latency=(1,), costs=(costs(3.0), costs(2.0, at_most=4)))
    assert subtract_counts(now, before) == added
    assert TrialVerdict.WAIT is trial(1.0, Counts(failed=9), at_activation=Counts(failed=9))


@pytest.mark.fault("N1")
def test_a_hub_that_fails_once_delays_an_update(world: World) -> None:
    """While it is polled, and while files are fetched."""
    world.publish("1.1.0")
    world.hub.faults = [EffectFailure(FailureKind.TRANSIENT, "HUB_FAILED", "500")]
    world.settle()
    assert world.committed == "1.1.0"

    world.publish("1.2.0")
    while world.event_names()[-1] != "revision_staged":
        if world.record.stage.value == "STAGING" and not world.hub.faults and world.record.hub.failures == 0:
            world.hub.faults = [EffectFailure(FailureKind.TRANSIENT, "HUB_FAILED", "500")]
        world.tick()
    world.settle()
    assert world.committed == "1.2.0"


@pytest.mark.fault("N4")
def test_a_hub_that_denies_access_is_no_failure_of_the_hub(world: World) -> None:
    """A person has to change a setting; the breaker does not count it."""
    world.hub.faults = [EffectFailure(FailureKind.DENIED, "HUB_DENIED", "403")] * 9
    for _ in range(60):
        world.tick()
    assert world.record.hub.failures == 0
    assert "HUB_DENIED" in world.record.watch.message


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (OperatorCommand(CommandKind.UPDATE, "0.9.0"), "BELOW_MIN_VERSION"),
        (OperatorCommand(CommandKind.APPROVE, "source"), "NOT_HELD"),
        (OperatorCommand(CommandKind.UNQUARANTINE, "source"), "NOT_QUARANTINED"),
        (OperatorCommand(CommandKind.RESET_BREAKER, "fuse"), "BREAKER_UNKNOWN"),
    ],
)
def test_an_impossible_command_is_refused_with_a_reason(world: World, command: OperatorCommand, reason: str) -> None:
    """And changes nothing."""
    min_version = world.record.min_version
    refused = world.command(command.kind, command.argument)
    assert refused is not None
    assert reason == refused.reason
    assert world.event_names()[-1] == "command_refused"
    assert world.record.min_version == min_version


def test_settings_become_rules() -> None:
    """Policy, gate and trial, as written by the operator."""
    section = UpdaterSection.model_validate(
        {"models": {"shapes": {"hub_folder": "hub", "policy": {"mode": "approve"}, "observe": {"min_answers": 7}}}}
    )
    rules = build_rules(section, "shapes")
    assert (rules.mode.value, rules.observe.min_answers) == ("approve", 7)
    with pytest.raises(ValueError, match="capture groups"):
        UpdaterSection.model_validate({"models": {"shapes": {"hub_folder": "hub", "policy": {"pattern": "v.*"}}}})


def test_settings_and_rules_have_the_same_defaults() -> None:
    """An operator who sets nothing has the rules that the simulations run with."""
    section = UpdaterSection.model_validate({"models": {"shapes": {"hub_folder": "hub"}}})
    rules = build_rules(section, "shapes")

    # A failback's breaker waits for a whole trial, too.
    device = replace(rules.breakers[BreakerName.DEVICE], probe_seconds=DEVICE_BREAKER.probe_seconds)
    assert replace(rules, breakers={**rules.breakers, BreakerName.DEVICE: device}) == Rules()


def test_addresses_are_judged_by_whole_answers_and_shown_by_parts() -> None:
    """The paired test counts addresses whose spans are all right; micro-F1 counts spans, for people."""
    text = "浙江省杭州市"
    rules = TASK_ANSWERS[Task.ADDRESS_TAGGING]
    right = GoldenAnswer(rules.parse(text, [["prov", "浙江省"], ["city", "杭州市"]]))
    wrong = GoldenAnswer(rules.parse(text, [["prov", "浙江省"], ["road", "杭州市"]]))
    asked = tuple(
        GoldenQuestion(str(number), text, right.text, wrong if number < 20 else right, right) for number in range(100)
    )
    gate = GateAnswers("golden", "cpu", "float32", asked, task=Task.ADDRESS_TAGGING)

    judged = judge(gate, RULES)
    free = judge(replace(gate, questions=tuple(replace(row, expected="") for row in asked)), RULES)

    f1 = next(row for row in judged.evidence.measured if row.name == "micro_f1")
    assert (judged.verdict, judged.reason) == (GateVerdict.REFUSE, "ACCURACY")
    assert (f1.candidate, f1.active) == (0.9, 1.0)
    assert "most often city → road (20)" in free.message
    assert [(row.active, row.candidate, row.count) for row in judged.evidence.label_pairs] == [
        ("prov", "prov", 100),
        ("city", "city", 80),
        ("city", "road", 20),
    ]


def test_evidence_says_which_labels_became_which() -> None:
    """Of questions that both models answered."""
    judged = judge(answers("rrrrwx", "rrwwrr"), RULES)
    pairs = {(row.active, row.candidate): row.count for row in judged.evidence.label_pairs}
    assert pairs == {("yes", "yes"): 2, ("yes", "no"): 2, ("no", "yes"): 1}


@pytest.mark.parametrize(
    ("expected", "active", "candidate", "kind"),
    [
        ("yes", "yes", "no", "NOW_WRONG"),
        ("yes", "no", "yes", "NOW_RIGHT"),
        ("yes", "no", "maybe", "CHANGED"),
        ("", "no", "maybe", "CHANGED"),
        ("yes", "no", "no", "STILL_WRONG"),
        ("yes", "", "no", "STILL_WRONG"),
    ],
)
def test_a_difference_has_a_kind(expected: str, active: str, candidate: str, kind: str) -> None:
    """By which of the two answers is the expected one."""
    assert classify_difference(Differing("item", "?", expected, active, candidate)).value == kind
