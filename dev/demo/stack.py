"""The demo's stack: revisions, a hub, a state folder, and the right answers."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.engine_files import Task
from common.sealing import ConvertLimits, run_convert
from common.settings import inherit_environment
from dev.harness.control import RECONNECT_OPTIONS
from dev.harness.demo_model import MODEL, SHAPES, TOLERANCE, Item, answers_of, expected_of, golden_items, seal_revisions
from dev.harness.load import AnyQuestion, Expected, Load
from dev.harness.process import ROOT
from dev.harness.supervised import SupervisedStack
from examples.shapes.layout import TABLE, TIED_TO_TABLE, WEIGHTS
from examples.shapes.overflow import WORD, overflow_directory
from examples.shapes.worsen import worsen_directory

PORT = 50174
ITEMS = 60
BETTER, WORSE, OVERFLOWING, AGAIN = "v1.1.0", "v1.2.0", "v1.3.0", "v1.4.0"
CONFUSED, FIRST_EQUAL = "v1.5.0", 6
EQUALS, MAX_EQUALS = 2, 20  # revisions as good as `BETTER`, whose weights are moved by a seed
FIRST = "v1.0.0"
CALLERS = 4
CALLER_PAUSE_SECONDS = 0.02  # between two calls: the machine has other work, too
SPOILING_EVERY = 4  # one question in so many, while the word is in use


def name_equals(count: int) -> tuple[str, ...]:
    """Names of so many equally good revisions."""
    return tuple(f"v1.{FIRST_EQUAL + number}.0" for number in range(count))


SETTINGS = f"""
state_dir = "{{state}}"

[server]
port = {PORT}
metrics_port = -1
drain_delay_seconds = 0

[runner]
threads = 1

[updater]
metrics_port = -1
"""
# Short windows: the demo takes three minutes.
MODEL_SETTINGS = """
[[models]]
name = "{model}"
task = "{task}"
precision = "float32"

[updater.models.{model}]
hub_folder = "{hub}"
golden = "{golden}"
poll_seconds = 0.5

[updater.models.{model}.observe]
window_seconds = 5
max_seconds = 60
trial_lease_seconds = 30
keep_warm_seconds = {keep_warm}

[updater.models.{model}.compare]
share = 0.5
"""


@dataclass(frozen=True, slots=True)
class DemoStack:
    """The demo's folder, its stack, and the right answers of every revision of one of its models."""

    folder: Path
    stack: SupervisedStack
    questions: tuple[AnyQuestion, ...]  # every good revision can answer them
    with_word: tuple[AnyQuestion, ...]  # the same, and some that the overflowing revision cannot answer
    expected: Expected  # the bare engine's answers
    model: str = MODEL
    callers: int = CALLERS
    make_load: type[Load] = Load
    tolerance: float = TOLERANCE
    more: tuple[AnyQuestion, ...] = ()  # of the chapter about answers: all golden questions
    words: tuple[str, ...] = ()  # that the confused revision confuses

    @property
    def golden(self) -> Path:
        """The folder of the model's golden set."""
        return golden_folder(self.folder, self.model)

    def source(self, revision: str) -> Path:
        """The folder of a revision, as downloaded or trained."""
        return source_folder(self.folder, self.model, revision)

    def load(self, options: Sequence[tuple[str, Any]] = RECONNECT_OPTIONS) -> Load:
        """Callers, by default without retries."""
        return self.make_load(
            f"127.0.0.1:{PORT}",
            self.questions,
            self.expected,
            self.callers,
            pace=CALLER_PAUSE_SECONDS,
            tolerance=self.tolerance,
            options=options,
        )

    def add_to_hub(self, revision: str) -> None:
        """Publish a revision as an operator does: `hotslot hub add`."""
        hotslot = str(Path(sys.executable).parent / "hotslot")
        command = [hotslot, "hub", "add", str(self.source(revision)), revision, "--model", self.model]
        environment = {**inherit_environment(), "HOTSLOT_CONFIG": str(self.stack.config)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, timeout=60)


def model_settings(
    stack: SupervisedStack, model: str, golden: Path, keep_warm_seconds: int, task: Task = Task.VISUAL_ENTAILMENT
) -> str:
    """The settings of one model of the demo."""
    values = {"model": model, "task": task.value, "hub": stack.hub, "golden": golden, "keep_warm": keep_warm_seconds}
    return MODEL_SETTINGS.format(**values)


def build(folder: Path, keep_warm_seconds: int = 2) -> DemoStack:
    """Make revisions, seal and commit the first one, and compute the right answers with the bare engine."""
    (folder / "models" / MODEL).mkdir(parents=True)
    for revision in (FIRST, BETTER):
        shutil.copytree(SHAPES / revision, _source(folder, revision))
    worsen_directory(_source(folder, BETTER), _source(folder, WORSE))
    overflow_directory(_source(folder, BETTER), _source(folder, OVERFLOWING))
    publish_again(_source(folder, BETTER), _source(folder, AGAIN))
    stack, golden = SupervisedStack(folder), golden_folder(folder, MODEL)
    shutil.copytree(SHAPES / "golden", golden)
    stack.config.write_text(
        SETTINGS.format(state=stack.state) + model_settings(stack, MODEL, golden, keep_warm_seconds),
        encoding="utf-8",
    )
    items, spoiling = golden_items(ITEMS), _spoiling_items()
    bundles = dict(seal_revisions(stack.state, {FIRST: _source(folder, FIRST)}))
    bare = folder / "bare"  # apart, so that the updater finds no bundle that is sealed already
    bare.mkdir()
    answers = {FIRST: answers_of(stack.state, bundles[FIRST], [*items, *spoiling])}
    for revision in (BETTER, OVERFLOWING, AGAIN):
        bundle = run_convert(_source(folder, revision), bare, revision, ConvertLimits(), "float32")
        asked = items if revision == OVERFLOWING else [*items, *spoiling]
        answers[revision] = answers_of(bare, bundle, asked)
    questions = tuple(asked for _, asked in items)
    mixed = mix_spoiling(questions, [asked for _, asked in spoiling])
    return DemoStack(folder, stack, questions, mixed, expected_of(answers, [*items, *spoiling]))


def publish_again(folder: Path, out: Path) -> None:
    """Copy a model folder with the same weights in other bytes: a new revision with the same answers."""
    shutil.copytree(folder, out)
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    table = weights[TABLE].to(torch.float32)
    weights.update(dict.fromkeys((TABLE, *TIED_TO_TABLE), table))
    torch.save(weights, out / WEIGHTS)


def source_folder(folder: Path, model: str, revision: str) -> Path:
    """Where a revision of a model is made."""
    return folder / "models" / model / revision


def golden_folder(folder: Path, model: str) -> Path:
    """Where the golden set of a model lies; a copy, which a chapter replaces."""
    return folder / "golden" / model


def mix_spoiling(questions: Sequence[AnyQuestion], spoiling: Sequence[AnyQuestion]) -> tuple[AnyQuestion, ...]:
    """Some questions in the place of others: one of SPOILING_EVERY."""
    return tuple(
        spoiling[place % len(spoiling)] if place % SPOILING_EVERY == 0 else asked
        for place, asked in enumerate(questions)
    )


def _source(folder: Path, revision: str) -> Path:
    return source_folder(folder, MODEL, revision)


def _spoiling_items() -> list[Item]:
    """A few golden pictures, asked with the word that no golden item has."""
    statements = (f"there are {WORD} stars",)
    return [(f"{name}-{WORD}", replace(asked, statements=statements)) for name, asked in golden_items(6)]
