"""Send the same questions to the oracle and the engine, and print the differences.

    python -m dev.parity.compare                         the made-up models
    python -m dev.parity.compare --folder DIR            a published folder as well, on the demo's golden set
    python -m dev.parity.compare --large                 a made-up model of 473 M parameters as well (minutes)

A model with random parameters and an untrained one ("fresh") are tested with 512 items each, the others with fewer. The
exit code is 1 if in float32 a probability differs by more than 1e-5 or a label differs, or if for a model with many
items a label is rarer than a fifth or a probability differs by more than 2e-2 in bfloat16. All else is only printed.
"""

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dev.parity.items import Question, golden_questions, many_questions, questions
from dev.parity.make_model import Recipe, make_model
from dev.parity.oracle import Oracle, versions
from dev.parity.ours import Scores, ask, load_source
from dev.parity.pictures import FOLDER as PICTURES
from dev.parity.variants import GENERATING, HALF, VARIANTS
from inference.runner.engines.ofa.config import LABELS

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
MIN_ITEMS, MIN_SHARE = 500, 0.2  # of an answer among so many items
_TOGETHER = 8  # questions in one padded call
_FEW = 12  # questions to a model or a way of asking that is slow
_MANY = ("plain", "fresh")  # models that are asked many


@dataclass(frozen=True, slots=True)
class Gap:
    """The differences between two lists of answers."""

    items: int
    max_gap: float
    beyond: int  # items that are further apart than the precision's tolerance
    flips: int
    answers: Mapping[str, int]  # the oracle's, by label
    median_margin: float  # between the oracle's best and second

    def is_good(self, precision: str) -> bool:
        """Whether they agree, on enough items.

        In bfloat16 only the large records are judged: a small model may amplify rounding errors.
        """
        if precision != "float32":
            return self.items < MIN_ITEMS or not self.beyond
        rarest = min(self.answers.get(label, 0) for label in LABELS)
        return not self.beyond and not self.flips and (self.items < MIN_ITEMS or rarest >= MIN_SHARE * self.items)


def gap_between(theirs: Sequence[Scores], ours: Sequence[Scores], tolerance: float) -> Gap:
    """Compare answers to the same questions."""
    gaps = [max(abs(one[label] - other[label]) for label in one) for one, other in zip(theirs, ours, strict=True)]
    flips = sum(_label(one) != _label(other) for one, other in zip(theirs, ours, strict=True))
    margins = [best - second for best, second, _ in (sorted(one.values(), reverse=True) for one in theirs)]
    answers = dict(sorted(Counter(map(_label, theirs)).items()))
    beyond = sum(gap > tolerance for gap in gaps)
    return Gap(len(theirs), max(gaps), beyond, flips, answers, statistics.median(margins))


def main(arguments: Sequence[str]) -> int:
    """Compare the requested models and return the exit code."""
    parser = argparse.ArgumentParser(prog="compare", description="Compare our engine with the stock pipeline.")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a published folder to compare on")
    parser.add_argument("--large", action="store_true", help="compare at 473 M parameters too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are so small that more only wait for each other
    print("oracle:", ", ".join(f"{name} {version}" for name, version in versions().items()))
    some, many = list(questions()), list(many_questions())
    few = some[:: len(some) // _FEW]
    print(f"{'model':12} {'asked':10} {'precision':10} items  max |Δp|  beyond  flips  median margin  oracle's answers")
    recipes = [(name, recipe, many if name in _MANY else some) for name, recipe in VARIANTS.items()]
    recipes += [("half", HALF, few), ("generating", GENERATING, few)]
    if options.large:
        recipes.append(("large", Recipe(size="large"), few))
    results = [_compare_recipe(name, recipe, asked) for name, recipe, asked in recipes]
    results += [_compare_folder(folder.name, folder, list(golden_questions()) or some) for folder in options.folder]
    return 0 if all(results) else 1


def _compare_recipe(name: str, recipe: Recipe, asked: Sequence[Question]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), recipe)
        return _compare_folder(name, Path(folder), asked)


def _compare_folder(name: str, folder: Path, asked: Sequence[Question]) -> bool:
    """Print how a folder's model compares in each precision and way of asking, and return whether it is good."""
    oracle = Oracle(folder)
    theirs = [oracle.ask(PICTURES / one.picture, one.statement, one.premise) for one in asked]
    good = True
    for precision, tolerance in TOLERANCES.items():
        engine = load_source(folder, precision)
        for way, together in (("singly", 1), ("padded", _TOGETHER)):
            gap = gap_between(theirs, ask(engine, asked, together), tolerance)
            print(
                f"{name:12} {way:10} {precision:10} {gap.items:5}  {gap.max_gap:.1e} {gap.beyond:7} {gap.flips:6}"
                f" {gap.median_margin:14.3f}  {gap.answers}",
                flush=True,
            )
            good &= gap.is_good(precision)
    return good


def _label(scores: Scores) -> str:
    return max(scores, key=scores.__getitem__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
