"""Golden questions with their answers, and how these differ. Pure. The sets: `common.golden_set`."""

from dataclasses import dataclass
from enum import StrEnum

from common.engine_files import Task
from updater.core.comparison import GoldenAnswer
from updater.core.record import Differing


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
    """The answers of one run of the gate; `gate_verdict.judge` judges them."""

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
