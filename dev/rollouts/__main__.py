"""`make rollouts`: simulated rollouts with true error rates, as docs/rollouts.md and docs/rollouts.svg.

Each rollout draws a golden set and live answers, and asks the shipped verdict after every tenth answer.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.rollouts.chart import Curve, draw_curves
from dev.rollouts.simulate import Rollouts, simulate
from dev.rollouts.truth import Candidate, change_rate, error_rates, list_outcomes
from updater.core.rules import CompareRules

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUNS, ANSWERS, SEED = 200, 10_000, 1
ERROR_RATES = (0.11, 0.05)
QUESTIONS = (60, 200, 1000)  # of the golden set
MARKS = (100, 1000, 2000, 10_000)  # compared answers
RULES = CompareRules()
HEAD = """# Simulated rollouts

Written by `make rollouts`: {runs} rollouts of each row, seed {seed}. The shipped verdict is asked after every tenth
compared answer (after 2,000 every fiftieth), up to 10,000 answers.

Each rollout draws a golden set that lacks the weakness, and live answers that have it (`dev/rollouts/truth.py`).
*Wrong* is the true share of wrong answers of the active model and of the candidate, *changed* the true share of live
answers that differ. A rollout is held when its changed answers are beyond what its golden set allows
([why and how](explanation/decisions/changed-answers.md)).

Of a trial's requests a fifth is compared by default (`compare.share`), in idle time: 2,000 compared answers are at
least 10,000 requests with one statement. A trial may be committed with 100 compared answers (`compare.min_compared`),
the first column.

**False alarms**: {false} of {whole} rollouts of equal and better candidates were held ({share:.2%}).

![the share of rollouts that are held, by compared answers](rollouts.svg)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One candidate with one golden set."""

    candidate: Candidate
    error_rate: float
    questions: int
    rates: tuple[float, float]
    changes: float
    rollouts: Rollouts


def list_candidates(error_rate: float) -> list[Candidate]:
    """What is rolled out, where the active model is wrong with `error_rate`."""
    doubled = error_rate / (1.0 - error_rate)  # the weakness hits what was wrong before, too
    return [
        Candidate("equal, retrained"),
        Candidate("better: a tenth of the errors", error_factor=0.1),
        Candidate("errors doubled in a weakness", weakness=doubled),
        Candidate("errors doubled, one way", weakness=doubled, is_one_way=True),
        Candidate("same weights, damaged: errors doubled", weakness=doubled, is_retrained=False),
        Candidate("better, with a larger weakness", error_factor=0.1, weakness=2 * doubled),
    ]


def main() -> int:
    """Simulate all cases and write the page."""
    parser = argparse.ArgumentParser(prog="make rollouts", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="rollouts of each case")
    parser.add_argument("--print", action="store_true", help="print the page instead of writing it")
    options = parser.parse_args()
    began = time.monotonic()
    cases = list(run_cases(options.runs))
    page = render_page(cases, options.runs)
    if options.print:
        print(page)
        return 0
    (DOCS / "rollouts.md").write_text(page, encoding="utf-8")
    curves = [
        Curve(f"{case.candidate.name}, {case.questions} questions", case.rollouts.held_after, case.rollouts.runs)
        for case in cases
        if case.error_rate == ERROR_RATES[0]
        and case.candidate.name in (cases[0].candidate.name, cases[6].candidate.name)
    ]
    (DOCS / "rollouts.svg").write_text(draw_curves(curves, ANSWERS), encoding="utf-8")
    print(f"{len(cases)} cases of {options.runs} rollouts in {time.monotonic() - began:.0f} s")
    return 0


def run_cases(runs: int) -> Iterator[Case]:
    """Roll out every candidate with every golden set."""
    for error_rate in ERROR_RATES:
        for candidate in list_candidates(error_rate):
            outcomes = list_outcomes(error_rate, candidate)
            for questions in QUESTIONS:
                rollouts = simulate(outcomes, questions, ANSWERS, runs, RULES, SEED)
                rates, changes = error_rates(outcomes), change_rate(outcomes)
                yield Case(candidate, error_rate, questions, rates, changes, rollouts)


def render_page(cases: list[Case], runs: int) -> str:
    """The page with its table."""
    kept = [case for case in cases if case.rates[1] <= case.rates[0]]
    false, whole = sum(len(case.rollouts.held_after) for case in kept), len(kept) * runs
    marks = " | ".join(f"held by {mark:,}" for mark in MARKS)
    head = HEAD.format(runs=runs, seed=SEED, false=false, whole=whole, share=false / whole)
    columns = (
        f"| candidate | wrong | changed | golden questions | {marks} |\n" + "|---" * 4 + "|---:" * len(MARKS) + "|"
    )
    return "\n".join([head, columns, *map(_row, cases), ""])


def _row(case: Case) -> str:
    before, after = case.rates
    cells = [case.candidate.name, f"{before:.1%} → {after:.1%}", f"{case.changes:.1%}", f"{case.questions:,}"]
    cells += [f"{case.rollouts.held_within(mark):.1%}" for mark in MARKS]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
