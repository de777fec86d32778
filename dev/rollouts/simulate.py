"""Simulated rollouts: a golden set is drawn, answers come, and the shipped verdict is asked again and again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from common.engine_files import Task
from dev.rollouts.truth import Outcome
from updater.core.changes import evaluate_changes, find_beyond
from updater.core.comparison import AnswerComparison, AnswerPair, ChangedDirection, ExpectedChanges
from updater.core.rules import CompareRules
from updater.stages.gate_verdict import expect_changes

FINE, COARSE = 10, 50  # answers between two looks, at first and later
FINE_UNTIL = 2000


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The results of many rollouts of one candidate."""

    runs: int
    held_after: tuple[int, ...]  # compared answers, of those that were held
    found_by: Counter[str]  # kinds of change

    def held_within(self, answers: int) -> float:
        """The share of rollouts that were held within so many compared answers."""
        return sum(after <= answers for after in self.held_after) / self.runs


def simulate(
    outcomes: Sequence[Outcome], questions: int, answers: int, runs: int, rules: CompareRules, seed: int
) -> Rollouts:
    """Roll a candidate out `runs` times, each with a golden set and traffic of its own.

    Args:
        outcomes: what is true of both models.
        questions: of the golden set.
        answers: compared until the trial is kept.
        runs: rollouts.
        rules: of the comparison.
        seed: of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    held, found = [], Counter[str]()
    for _ in range(runs):
        after, name = _roll_out(rng, outcomes, questions, answers, rules)
        if name:
            held.append(after)
            found[name] += 1
    return Rollouts(runs, tuple(held), found)


def _roll_out(
    rng: Generator, outcomes: Sequence[Outcome], questions: int, answers: int, rules: CompareRules
) -> tuple[int, str]:
    """Answers until it was held, and the kind of change; an empty one if it was kept."""
    expected = _draw_golden(rng, outcomes, questions)
    live = np.array([row.probability for row in outcomes])
    counts = np.zeros(len(outcomes), dtype=np.int64)
    total = 0
    while total < answers:
        step = FINE if total < FINE_UNTIL else COARSE
        counts, total = counts + rng.multinomial(step, live / live.sum()), total + step
        beyond = find_beyond(evaluate_changes(expected, _compare(outcomes, counts), rules))
        if beyond is not None:
            return total, beyond.name
    return total, ""


def _draw_golden(rng: Generator, outcomes: Sequence[Outcome], questions: int) -> ExpectedChanges:
    weights = np.array([row.probability if row.is_golden else 0.0 for row in outcomes])
    drawn = rng.choice(len(outcomes), questions, p=weights / weights.sum())
    pairs = [
        AnswerPair(row.right, row.active, row.candidate, row.is_sure) for row in (outcomes[number] for number in drawn)
    ]
    return expect_changes(pairs, Task.VISUAL_ENTAILMENT)


def _compare(outcomes: Sequence[Outcome], counts: NDArray[np.int64]) -> AnswerComparison:
    directions = Counter[str]()
    sure = sure_changed = 0
    for row, count in zip(outcomes, counts.tolist(), strict=True):
        is_changed = row.active != row.candidate
        sure += count * row.is_sure
        sure_changed += count * (row.is_sure and is_changed)
        if count and is_changed:
            directions[f"{row.active} → {row.candidate}"] += count
    rows = tuple(ChangedDirection(name, count) for name, count in directions.items())
    return AnswerComparison(int(counts.sum()), int(counts.sum()), directions.total(), rows, sure, sure_changed)
