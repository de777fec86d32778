"""Golden questions with their answers, and their statistics. Pure. The sets: `common.golden_set`."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, lgamma, log

from common.answers import TaskAnswers, count_label_pairs, sum_parts
from common.engine_files import Task
from updater.core.comparison import GoldenAnswer, LabelPair
from updater.core.record import Differing

MAX_LABEL_PAIRS = 400  # kept as evidence; addresses have some twenty kinds of parts


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    """One question with the answers of both slots."""

    item: str
    text: str
    expected: str  # empty: compared with the active model
    candidate: GoldenAnswer
    active: GoldenAnswer | None  # None if nothing serves


@dataclass(frozen=True, slots=True)
class GateAnswers:
    """The answers of one run of the gate; `gate.judge` judges them."""

    golden_digest: str  # empty: built-in probes
    device: str
    precision: str
    questions: tuple[GoldenQuestion, ...]
    min_accuracy: float = 0.0  # the set's own
    candidate_seconds: float = 0.0  # device time of all questions; CPU seconds on a CPU
    active_seconds: float = 0.0  # the same questions on the active slot; 0 if nothing serves
    candidate_bytes: int = 0  # resident after the run; 0 if unknown
    planned_bytes: int = 0  # as planned before the load; 0: no plan
    task: Task = Task.VISUAL_ENTAILMENT


def accuracy(right: Sequence[bool]) -> float:
    """Share of right answers, 0 to 1; 0 for none."""
    return sum(right) / len(right) if right else 0.0


def negative_flips(active_right: Sequence[bool], candidate_right: Sequence[bool]) -> int:
    """How many questions the active model has right and the candidate wrong."""
    return sum(a and not c for a, c in zip(active_right, candidate_right, strict=True))


def positive_flips(active_right: Sequence[bool], candidate_right: Sequence[bool]) -> int:
    """How many questions the active model has wrong and the candidate right."""
    return sum(c and not a for a, c in zip(active_right, candidate_right, strict=True))


def agreement(pairs: Sequence[tuple[str, str]]) -> float:
    """Share of questions that both answered alike, 0 to 1; 1 for none."""
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


def micro_f1(asked: Sequence[GoldenQuestion], task: TaskAnswers) -> tuple[float, float | None]:
    """F1 over the parts of all answers, of the candidate and of the active model; None if nothing serves."""
    candidate = sum_parts(task, [(row.expected, row.candidate.text) for row in asked])
    active = [(row.expected, row.active.text) for row in asked if row.active is not None]
    return candidate.f1, sum_parts(task, active).f1 if active else None


def list_differing(asked: Sequence[GoldenQuestion], most: int) -> tuple[Differing, ...]:
    """The first questions on which the two differ, or the candidate is wrong."""
    rows: list[Differing] = []
    for row in asked:
        active = "" if row.active is None else row.active.text or row.active.failure
        candidate = row.candidate.text or row.candidate.failure
        is_wrong = bool(row.expected) and candidate != row.expected
        if is_wrong or (row.active is not None and active != candidate):
            rows.append(Differing(row.item, row.text, row.expected, active, candidate))
    return tuple(rows[:most])


class DifferenceKind(StrEnum):
    """How the answers of both models to a golden question differ."""

    NOW_WRONG = "NOW_WRONG"  # only the active model answers as expected
    NOW_RIGHT = "NOW_RIGHT"  # only the candidate does
    CHANGED = "CHANGED"  # two answers, of which neither is the expected one, or nothing is expected
    STILL_WRONG = "STILL_WRONG"  # the candidate is wrong, and the active model gives the same answer, or none serves


def classify_difference(row: Differing) -> DifferenceKind:
    """How the two answers differ."""
    if row.expected and row.candidate == row.expected:
        return DifferenceKind.NOW_RIGHT
    if row.expected and row.active == row.expected:
        return DifferenceKind.NOW_WRONG
    return DifferenceKind.STILL_WRONG if row.active in ("", row.candidate) else DifferenceKind.CHANGED


def list_label_pairs(asked: Sequence[GoldenQuestion], task: TaskAnswers) -> tuple[LabelPair, ...]:
    """Which labels both models gave to the questions that both answered, with how often; the most frequent first."""
    pairs = [
        (row.active.text, row.candidate.text)
        for row in asked
        if row.active is not None and not row.active.failure and not row.candidate.failure
    ]
    return tuple(LabelPair(*row) for row in count_label_pairs(task, pairs)[:MAX_LABEL_PAIRS])


def worse_by_chance(negative: int, positive: int) -> float:
    """Probability that an equally good candidate has at least this many negative flips: exact McNemar test, one-sided.

    Args:
        negative: questions that only the active model has right.
        positive: questions that only the candidate has right.
    """
    return at_least(negative, negative + positive, 0.5)


def under_by_chance(right: int, questions: int, min_accuracy: float) -> float:
    """Probability that a candidate of accuracy `min_accuracy` has at most `right` right answers: exact binomial."""
    return at_least(questions - right, questions, 1.0 - min_accuracy)


def at_least(successes: int, trials: int, chance: float) -> float:
    """Probability of at least `successes` successes in `trials` trials."""
    if successes <= 0:
        return 1.0
    if successes > trials or chance <= 0.0:
        return 0.0
    if chance >= 1.0:
        return 1.0
    # By logarithms: ten thousand questions have more ways than a float can count.
    logs = (
        lgamma(trials + 1)
        - lgamma(count + 1)
        - lgamma(trials - count + 1)
        + count * log(chance)
        + (trials - count) * log(1.0 - chance)
        for count in range(successes, trials + 1)
    )
    return min(1.0, sum(map(exp, logs)))
