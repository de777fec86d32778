"""The demo model for real stacks: sealed revisions, golden items, and what the bare engine answers to them."""

import json
from collections.abc import Mapping
from pathlib import Path

from common.bundle import Bundle, bundle_folder
from common.sealing import ConvertLimits, run_convert
from dev.harness.answers import Question, Scores
from dev.harness.load import Expected
from dev.harness.pointer import commit_bundle
from dev.harness.process import ROOT
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.engines.ofa.load import load_ofa
from inference.wire import EntailmentScores

SHAPES = ROOT / "examples" / "shapes"
MODEL = "shapes"
TOLERANCE = 1e-4  # of a probability: the sum order of a batch moves the last bits
SETTINGS = """
state_dir = "{state}"
[[models]]
name = "shapes"
precision = "float32"
[server]
port = {port}
metrics_port = -1
drain_delay_seconds = 0
[runner]
threads = 1
[logs]
level = "warning"
"""

Item = tuple[str, Question]


def seal_revisions(state: Path, folders: Mapping[str, Path], model: str = MODEL) -> dict[str, Bundle]:
    """Convert revisions, and commit the first."""
    state.mkdir(parents=True, exist_ok=True)
    bundles = {name: run_convert(path, state, name, ConvertLimits(), "float32") for name, path in folders.items()}
    commit_bundle(state, next(iter(bundles.values())), model)
    return bundles


def golden_items(count: int) -> list[Item]:
    """The first items of the demo's golden set."""
    rows = [json.loads(line) for line in (SHAPES / "golden" / "golden.jsonl").read_text().splitlines()]
    return [
        (row["item"], Question((SHAPES / "golden" / row["image"]).read_bytes(), tuple(row["statements"])))
        for row in rows[:count]
    ]


def answers_of(state: Path, bundle: Bundle, items: list[Item]) -> dict[str, Scores]:
    """What the bare engine of a sealed bundle answers, by item."""
    options = LoadOptions("cpu", "float32", 1)
    engine = load_ofa(bundle_folder(state, bundle.bundle_digest), bundle, options, lambda _phase, _share: None)
    found = {}
    for name, asked in items:
        prepared = engine.prepare(EntailmentItem(asked.image, asked.statements, asked.premise))
        [scores] = engine.compute([RowRange(prepared, 0, prepared.rows)])
        found[name] = tuple((one.yes, one.no, one.maybe) for one in scores if isinstance(one, EntailmentScores))
    return found


def expected_of(answers: Mapping[str, Mapping[str, Scores]], items: list[Item]) -> Expected:
    """Answers by revision and item as callers compare them: by revision and question."""
    questions = dict(items)
    return {(name, questions[item]): rows[item] for name, rows in answers.items() for item in rows if item in questions}
