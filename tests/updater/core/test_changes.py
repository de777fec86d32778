"""Changed answers beyond what the golden set predicts: the statistics, and the verdicts on simulated rollouts."""

from time import process_time

import pytest

from common.engine_files import Task
from dev.rollouts.simulate import simulate
from dev.rollouts.truth import Candidate, change_rate, error_rates, list_outcomes
from updater.core.changes import (
    ALL_CHANGES,
    SURE_CHANGES,
    ChangeTest,
    beta_below,
    describe_beyond,
    evaluate_changes,
    find_beyond,
    find_upper_bound,
    is_called_better,
    weigh_evidence,
)
from updater.core.comparison import AnswerComparison, AnswerPair, ChangedDirection, ExpectedChanges
from updater.core.rules import CompareRules
from updater.stages.gate_verdict import expect_changes

RULES = CompareRules()


def compare(changed: int, compared: int, direction: str = "yes → no", sure_changed: int = 0) -> AnswerComparison:
    """Live answers that changed in one direction."""
    rows = (ChangedDirection(direction, changed),) if changed else ()
    return AnswerComparison(compared, compared, changed, rows, compared, sure_changed)


def expect(changed: int, questions: int, *, better: int = 0) -> ExpectedChanges:
    """Golden answers that changed from yes to no, none of them sure."""
    right = ["no"] * better + ["yes"] * (changed - better)
    pairs = [AnswerPair(one, "yes", "no") for one in right]
    pairs += [AnswerPair("yes", "yes", "yes", is_sure=True)] * (questions - changed)
    return expect_changes(pairs, Task.VISUAL_ENTAILMENT)


def beyond(expected: ExpectedChanges, live: AnswerComparison) -> ChangeTest | None:
    """The kind of change that is found."""
    return find_beyond(evaluate_changes(expected, live, RULES))


@pytest.mark.parametrize(
    ("x", "a", "b", "probability"),
    [
        (0.5, 2.0, 3.0, 0.6875),  # by hand: 11 / 16
        (0.2, 1.0, 5.0, 1 - 0.8**5),
        (0.9, 5.0, 1.0, 0.9**5),
        (0.5, 0.5, 0.5, 0.5),
        (0.3, 100.5, 900.5, 1.0),
        (0.05, 900.5, 100.5, 0.0),
    ],
)
def test_the_distribution_of_a_share_agrees_with_what_is_known(
    x: float, a: float, b: float, probability: float
) -> None:
    """The regularized incomplete beta function."""
    assert beta_below(x, a, b) == pytest.approx(probability, abs=1e-9)


def test_the_upper_bound_is_the_quantile_of_jeffreys_posterior() -> None:
    """As in Brown, Cai and DasGupta's table for 95 % two-sided intervals; nothing is known without questions."""
    assert find_upper_bound(0, 10, 0.025) == pytest.approx(0.217, abs=5e-4)
    assert find_upper_bound(3, 10, 0.025) == pytest.approx(0.606, abs=5e-4)
    assert find_upper_bound(0, 0, 0.01) == 1.0
    assert find_upper_bound(10, 10, 0.01) == 1.0


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_evidence_is_a_fair_bet_at_the_bound(share: float) -> None:
    """Its mean over all counts is 1 where the true share is the bound, so that a tenfold gain is rare."""
    asked = 40
    chances = [1.0]
    for _ in range(asked):  # the binomial distribution, by its recursion
        longer = [*chances, 0.0]
        chances = [(1 - share) * now + share * before for now, before in zip(longer, [0.0, *chances], strict=True)]
    mean = sum(chance * weigh_evidence(seen, asked, share) for seen, chance in enumerate(chances))
    assert mean == pytest.approx(1.0)


def test_evidence_has_edges() -> None:
    """Nothing was seen; nothing is allowed; everything is allowed; more than a float holds."""
    assert weigh_evidence(0, 0, 0.1) == 1.0
    assert weigh_evidence(5, 10, 1.0) == 1.0
    assert weigh_evidence(0, 10, 0.0) == 1.0
    assert weigh_evidence(1, 10, 0.0) == float("inf")
    assert weigh_evidence(9000, 10_000, 0.01) == float("inf")
    assert weigh_evidence(0, 10_000, 0.1) < 1e-6


def test_changes_are_expected_by_direction_and_by_what_is_right() -> None:
    """Counted once for each golden question that both answered."""
    pairs = [
        AnswerPair("no", "yes", "no", is_sure=True),
        AnswerPair("yes", "yes", "no"),
        AnswerPair("", "yes", "maybe"),
        AnswerPair("yes", "yes", "yes", is_sure=True),
    ]
    found = expect_changes(pairs, Task.VISUAL_ENTAILMENT)
    assert (found.questions, found.changed, found.better, found.worse, found.singles) == (4, 3, 1, 1, 1)
    assert [(row.direction, row.count, row.better, row.worse) for row in found.directions] == [
        ("yes → no", 2, 1, 1),
        ("yes → maybe", 1, 0, 0),
    ]
    assert (found.sure_questions, found.sure_changed) == (2, 1)


@pytest.mark.fault("T1")
def test_a_weakness_that_the_golden_set_lacks_is_found_within_a_hundred_answers() -> None:
    """A golden set of 60 saw no change; 23.5 % of the live answers change."""
    found = beyond(expect(0, 60), compare(24, 100, sure_changed=20))
    assert found is not None
    assert found.name in (ALL_CHANGES, SURE_CHANGES)
    assert (found.count, found.compared, found.expected_count) in ((24, 100, 0), (20, 100, 0))


@pytest.mark.fault("T2")
def test_a_better_model_that_changes_as_many_answers_as_predicted_is_kept() -> None:
    """6 of 60 golden answers change, all for the better: 10 % of the live ones may, for as long as one looks."""
    expected = expect(6, 60, better=6)
    assert is_called_better(expected.better, expected.worse)
    assert all(beyond(expected, compare(count // 10, count)) is None for count in range(100, 10_001, 100))


def test_a_direction_is_tested_alone_unless_the_golden_set_calls_it_better() -> None:
    """As many changes in another direction than the golden set's are found sooner."""
    expected = expect(10, 200, better=10)
    assert beyond(expected, compare(200, 2000, "yes → no")) is None
    found = beyond(expected, compare(200, 2000, "no → yes"))
    assert found is not None
    assert found.name == "directions new to the golden set"


def test_changes_of_answers_of_which_the_active_model_was_sure_count_most() -> None:
    """As many changes among the others are what a better model makes."""
    expected = expect(12, 200, better=12)
    assert beyond(expected, compare(180, 2000)) is None
    found = beyond(expected, compare(180, 2000, sure_changed=150))
    assert found is not None
    assert found.name == SURE_CHANGES


def test_a_hold_is_explained_with_its_numbers() -> None:
    """Direction, counts, what was expected, and the bound."""
    expected, live = expect(3, 200, better=2), compare(60, 400)
    found = beyond(expected, live)
    assert found is not None
    assert describe_beyond(found, expected, live) == (
        "changes in 60 of 400 compared answers (15.0%), where the golden set predicts 1.5% and at most 5.5% "
        "(3 of 200 questions); most often yes → no (60); 2 of 3 changed golden answers are better and 1 worse"
    )


def test_ten_thousand_answers_of_addresses_are_judged_in_milliseconds() -> None:
    """With forty directions on the golden set and hundreds live."""
    kinds = [f"kind {n} → other" for n in range(300)]
    expected = expect_changes([AnswerPair("", "[]", "[]")] * 10_000, Task.ADDRESS_TAGGING)
    live = AnswerComparison(10_000, 10_000, 900, tuple(ChangedDirection(kind, 3) for kind in kinds), 8000, 100)
    beyond(expected, live)
    began = process_time()
    beyond(expected, live)
    assert process_time() - began < 0.1


EQUAL, BETTER = Candidate("equal, retrained"), Candidate("better", error_factor=0.1)
DOUBLED = Candidate("errors doubled", weakness=0.11 / 0.89)


def test_the_simulated_models_have_the_error_rates_that_they_should() -> None:
    """11 % wrong, then 11, 1.1 and 22 %; an equal one changes answers as well."""
    rates = {one.name: error_rates(list_outcomes(0.11, one)) for one in (EQUAL, BETTER, DOUBLED)}
    assert rates["equal, retrained"] == pytest.approx((0.11, 0.11))
    assert rates["better"] == pytest.approx((0.11, 0.011))
    assert rates["errors doubled"] == pytest.approx((0.11, 0.22), abs=1e-3)
    assert change_rate(list_outcomes(0.11, EQUAL)) == pytest.approx(0.096, abs=1e-3)
    assert sum(row.probability for row in list_outcomes(0.11, DOUBLED)) == pytest.approx(1.0)


@pytest.mark.fault("T2")
def test_equal_and_better_models_are_rarely_held_and_doubled_errors_are_found() -> None:
    """A few of the rollouts of `make rollouts`, which has the curves."""
    kept = [simulate(list_outcomes(0.11, one), 60, 1000, 40, RULES, seed=1) for one in (EQUAL, BETTER)]
    assert [rollouts.held_within(1000) for rollouts in kept] == [0.0, 0.0]
    found = simulate(list_outcomes(0.11, DOUBLED), 200, 2000, 20, RULES, seed=2)
    assert found.held_within(2000) >= 0.9
