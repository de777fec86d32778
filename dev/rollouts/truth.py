"""What is true of two models: the joint probabilities of the right answer and both answers, on golden items and live.

Questions are easy or hard. Both models answer an easy one right. Each answers a hard one wrong with the probability
`WRONG_IF_HARD`, independently, as two trainings of one architecture do: so an equally good model changes answers too.
The active model is sure of most easy answers and of few hard ones, as the demo's models are. A *weakness* is a share of
the traffic that the golden set lacks, and that the candidate answers wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from common.answers import LABELS

WRONG_IF_HARD = 0.75
SURE_IF_EASY, SURE_IF_HARD = 0.9, 0.15
MIX = (0.4, 0.4, 0.2)  # of right answers


@dataclass(frozen=True, slots=True)
class Candidate:
    """How a candidate differs from the active model."""

    name: str
    error_factor: float = 1.0  # of its errors on hard questions, against the active model's
    weakness: float = 0.0  # share of live questions that it answers wrong and the golden set lacks
    is_retrained: bool = True  # False: outside of the weakness it answers as the active model does
    is_one_way: bool = False  # the weakness answers "no", and "yes" where "no" is right


@dataclass(frozen=True, slots=True)
class Outcome:
    """One kind of question with both answers, and its probability on live traffic."""

    right: str
    active: str
    candidate: str
    is_sure: bool
    is_golden: bool  # whether the golden set may have it
    probability: float


def list_outcomes(error_rate: float, candidate: Candidate) -> list[Outcome]:
    """All outcomes of a question, where the active model is wrong with `error_rate`; the probabilities add up to 1."""
    return [row for row in _outcomes(error_rate, candidate) if row.probability > 0]


def error_rates(outcomes: list[Outcome]) -> tuple[float, float]:
    """The true error rates of the active model and of the candidate on live traffic."""
    active = sum(row.probability for row in outcomes if row.active != row.right)
    return active, sum(row.probability for row in outcomes if row.candidate != row.right)


def change_rate(outcomes: list[Outcome]) -> float:
    """The true share of live answers that differ."""
    return sum(row.probability for row in outcomes if row.active != row.candidate)


def _outcomes(error_rate: float, candidate: Candidate) -> Iterator[Outcome]:
    hard = error_rate / WRONG_IF_HARD
    for right, share in zip(LABELS, MIX, strict=True):
        for is_hard, of_kind in ((False, 1.0 - hard), (True, hard)):
            for active, by_active in _answers(right, WRONG_IF_HARD if is_hard else 0.0):
                for is_weak, of_traffic in ((False, 1.0 - candidate.weakness), (True, candidate.weakness)):
                    answers = _answers_of_candidate(candidate, right, active, is_hard=is_hard, is_weak=is_weak)
                    for answer, chance in answers:
                        sure = SURE_IF_HARD if is_hard else SURE_IF_EASY
                        whole = share * of_kind * by_active * of_traffic * chance
                        yield Outcome(right, active, answer, True, not is_weak, whole * sure)
                        yield Outcome(right, active, answer, False, not is_weak, whole * (1.0 - sure))


def _answers_of_candidate(
    candidate: Candidate, right: str, active: str, *, is_hard: bool, is_weak: bool
) -> list[tuple[str, float]]:
    if is_weak and candidate.is_one_way:
        return [("yes" if right == "no" else "no", 1.0)]
    if is_weak:
        return _answers(right, 1.0)
    if not candidate.is_retrained:
        return [(active, 1.0)]
    return _answers(right, WRONG_IF_HARD * candidate.error_factor if is_hard else 0.0)


def _answers(right: str, wrong: float) -> list[tuple[str, float]]:
    """Each answer with its probability; the wrong ones are equally likely."""
    others = [label for label in LABELS if label != right]
    return [(right, 1.0 - wrong), *((label, wrong / len(others)) for label in others)]
