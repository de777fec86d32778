"""Ask the oracle and our engine the same questions, live, and print how far they are apart.

    python -m parity.compare                         the made-up models
    python -m parity.compare --folder DIR            a published folder as well
    python -m parity.compare --large                 a made-up model of 473 M parameters as well (minutes)

Exit code 1 if a probability in float32 is more than 1e-5 apart or a label flips.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity.items import Question, questions
from parity.make_model import Recipe, make_model
from parity.oracle import Oracle, versions
from parity.ours import Scores, ask, load_source
from parity.pictures import FOLDER as PICTURES
from parity.variants import GENERATING, HALF, VARIANTS

TOLERANCE = 1e-5
_TOGETHER = 8  # questions in one padded call
_FEW = 12  # questions to a model or a way of asking that is slow
_GOLDEN = Path(__file__).resolve().parent.parent / "examples" / "shapes" / "golden"


@dataclass(frozen=True, slots=True)
class Gap:
    """How far two lists of answers are apart."""

    items: int
    max_gap: float
    flips: int
    answers: Mapping[str, int]  # the oracle's, by label
    median_margin: float  # between the oracle's best and second

    @property
    def is_good(self) -> bool:
        """Whether they agree."""
        return self.max_gap <= TOLERANCE and not self.flips


def gap_between(theirs: Sequence[Scores], ours: Sequence[Scores]) -> Gap:
    """Compare answers to the same questions."""
    gaps = [max(abs(one[label] - other[label]) for label in one) for one, other in zip(theirs, ours, strict=True)]
    flips = sum(_label(one) != _label(other) for one, other in zip(theirs, ours, strict=True))
    margins = [best - second for best, second, _ in (sorted(one.values(), reverse=True) for one in theirs)]
    answers = dict(sorted(Counter(map(_label, theirs)).items()))
    return Gap(len(theirs), max(gaps), flips, answers, statistics.median(margins))


def main(arguments: Sequence[str]) -> int:
    """Compare everything that was asked for and return the exit code."""
    parser = argparse.ArgumentParser(prog="compare", description="Compare our engine with the stock pipeline.")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a published folder to compare on")
    parser.add_argument("--large", action="store_true", help="compare at 473 M parameters too")
    options = parser.parse_args(arguments)
    print("oracle:", ", ".join(f"{name} {version}" for name, version in versions().items()))
    asked = list(questions())
    print(f"{'model':12} {'asked':10} items  max |Δp|  flips  median margin  oracle's answers")
    results = [
        gap
        for name, recipe, some in (
            *((name, recipe, asked) for name, recipe in VARIANTS.items()),
            ("half", HALF, asked[:: len(asked) // _FEW]),
            ("generating", GENERATING, asked[:: len(asked) // _FEW]),
            *((("large", Recipe(size="large"), asked[:: len(asked) // _FEW]),) if options.large else ()),
        )
        for gap in _compare_recipe(name, recipe, some)
    ]
    for folder in options.folder:
        results += _compare_folder(folder.name, folder, list(golden_questions()) or asked)
    return 0 if all(gap.is_good for gap in results) else 1


def golden_questions() -> Iterator[Question]:
    """The demo's golden set; paths of its pictures are absolute, which a question's picture may be."""
    for line in (_GOLDEN / "golden.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for statement in row["statements"]:
            yield Question(str(_GOLDEN / row["image"]), statement, row.get("premise", ""))


def _compare_recipe(name: str, recipe: Recipe, asked: Sequence[Question]) -> list[Gap]:
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), recipe)
        return _compare_folder(name, Path(folder), asked)


def _compare_folder(name: str, folder: Path, asked: Sequence[Question]) -> list[Gap]:
    oracle = Oracle(folder)
    theirs = [oracle.ask(PICTURES / one.picture, one.statement, one.premise) for one in asked]
    engine = load_source(folder)
    gaps = []
    for way, together in (("singly", 1), ("padded", _TOGETHER)):
        gap = gap_between(theirs, ask(engine, asked, together))
        print(
            f"{name:12} {way:10} {gap.items:5}  {gap.max_gap:.1e} {gap.flips:6}"
            f" {gap.median_margin:14.3f}  {gap.answers}",
            flush=True,
        )
        gaps.append(gap)
    return gaps


def _label(scores: Scores) -> str:
    return max(scores, key=scores.__getitem__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
