"""Record the oracle's answers, or compare them with the recorded ones.

python -m dev.parity.fixtures            write tests/ofa/fixtures/*.json
python -m dev.parity.fixtures --check    generate them again and compare; exit code 1 if they differ
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dev.parity.items import Question, questions
from dev.parity.make_model import Recipe, make_model
from dev.parity.oracle import Oracle, versions
from dev.parity.pictures import FOLDER as PICTURES
from dev.parity.variants import VARIANTS
from inference.runner.conversion.ofa_plan import plan_ofa
from inference.runner.conversion.tensor_io import TensorReader

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "ofa" / "fixtures"
DIGITS = 7  # of a recorded probability
TOLERANCE = 2e-6  # between processors; each sums in another order
MIN_SHARE = 0.2  # of each answer among the items


def record(variant: str, recipe: Recipe) -> dict[str, Any]:
    """All answers of the oracle about a generated model.

    Raises:
        RuntimeError: an answer is too rare for a meaningful comparison.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, recipe)
        oracle = Oracle(folder)
        places = plan_ofa(folder).locations
        with TensorReader(places) as weights:
            oracle.check_weights({name: weights.get(name) for name in places})
        items = [_item(oracle, question) for question in questions()]
    shares = Counter(max(item["scores"], key=item["scores"].__getitem__) for item in items)
    if min(shares[label] for label in ("yes", "no", "maybe")) < MIN_SHARE * len(items):
        raise RuntimeError(f"of {variant}'s answers some are rare: {dict(shares)}")
    return {"oracle": versions(), "variant": variant, "answers": dict(sorted(shares.items())), "items": items}


def _item(oracle: Oracle, question: Question) -> dict[str, Any]:
    picture = PICTURES / question.picture
    scores = oracle.ask(picture, question.statement, question.premise)
    return {
        "picture": question.picture,
        "statement": question.statement,
        "premise": question.premise,
        "tokens": oracle.tokens(picture, question.statement, question.premise),
        "scores": {label: round(score, DIGITS) for label, score in scores.items()},
    }


def differences(recorded: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """What differs between two records, in sentences; probabilities may differ by the tolerance."""
    found = [
        f"{key}: {recorded[key]} is now {made[key]}"
        for key in ("oracle", "variant", "answers")
        if recorded[key] != made[key]
    ]
    for number, (old, new) in enumerate(zip(recorded["items"], made["items"], strict=False)):
        gap = max(abs(old["scores"][label] - new["scores"][label]) for label in old["scores"])
        if gap > TOLERANCE or {**old, "scores": 0} != {**new, "scores": 0}:
            found.append(f"item {number} ({old['picture']}, {old['statement'][:30]!r}): {gap:.1e} apart")
    if len(recorded["items"]) != len(made["items"]):
        found.append(f"{len(recorded['items'])} items are now {len(made['items'])}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Write or check all records and return the exit code."""
    parser = argparse.ArgumentParser(prog="fixtures", description="Record the oracle's answers.")
    parser.add_argument("--check", action="store_true", help="compare with the record instead of writing it")
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help="which of them")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the models are so small that more only wait for each other
    wrong = 0
    for variant in options.variants:
        recipe = VARIANTS[variant]
        path = FOLDER / f"{variant}.json"
        made = record(variant, recipe)
        if options.check:
            found = differences(json.loads(path.read_text(encoding="utf-8")), made)
            print(f"{variant}: {len(made['items'])} items, {len(found)} differences", *found[:10], sep="\n  ")
            wrong += bool(found)
        else:
            path.write_text(_to_json(made), encoding="utf-8")
            print(f"{variant}: {len(made['items'])} items, answers {made['answers']}")
    return 1 if wrong else 0


def _to_json(made: Mapping[str, Any]) -> str:
    """JSON with one line per item, for readable diffs."""
    head = {key: value for key, value in made.items() if key != "items"}
    lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in made["items"])
    return json.dumps(head, indent=1)[:-2] + ',\n "items": [\n' + lines + "\n ]\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
