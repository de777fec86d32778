"""Judges a sealed bundle by a golden set, without a server: a child process answers the set on the CPU."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.durable import read_bounded
from common.golden_set import GoldenItem, GoldenSet
from common.json_load import load_json
from common.sealing import ConvertLimits, run_child
from common.source import ConversionRefused

ANSWERS_NAME = "answers.json"
MAX_ANSWERS_BYTES = 64 << 20
Answers = Mapping[str, Sequence[str]]  # by item, in the form of `common.answers`; "" where it was NaN or infinity


@dataclass(frozen=True, slots=True)
class GoldenCount:
    """How many answers of a bundle are right."""

    right: int
    expected: int  # questions with an expected answer
    unread: int  # items that the engine refused
    not_finite: int = 0  # questions that it answered with NaN or infinity

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1; 1 if none is expected."""
        return self.right / self.expected if self.expected else 1.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a bundle must reach, by the settings; see `[updater.models.NAME]` and its `gate`."""

    min_accuracy: float  # the set's own counts if it is higher
    max_accuracy_loss: float  # against the committed bundle
    min_agreement: float  # with the committed bundle, on questions without an expected answer


def run_judge(bundle: Path, golden: Path, timeout_seconds: float) -> Answers:
    """Answer a golden set with a sealed bundle.

    Raises:
        ConversionRefused: the bundle or the set cannot be used, or it took too long; the message says why.
        OSError: there is no temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="hotslot-judge-") as name:
        command = [sys.executable, "-P", "-m", "hotslot_watchdog.launch", "-m", "inference.runner.judge"]
        command += ["--bundle", str(bundle.resolve()), "--golden", str(golden.resolve()), "--into", name]
        limits = ConvertLimits(timeout_seconds=timeout_seconds)
        run_child([*command, "--parent", str(os.getpid())], limits, lambda _percent: None)
        try:
            row: dict[str, list[str]] = load_json(read_bounded(Path(name) / ANSWERS_NAME, MAX_ANSWERS_BYTES))
        except (OSError, ValueError) as error:
            raise ConversionRefused("NOT_JUDGED", "the golden set was not answered") from error
    return row


def count_right(golden: GoldenSet, answers: Answers) -> GoldenCount:
    """Compare answers with the set's expectations; an item without answers is wrong."""
    right = sum(
        given == expected
        for item in golden.items
        for given, expected in zip(answers.get(item.item) or [""] * len(item.expected), item.expected, strict=False)
    )
    given = [answers.get(item.item, ()) for item in golden.items]
    return GoldenCount(
        right, golden.expected, sum(not row for row in given), sum(row.count("") for row in map(list, given))
    )


def find_objection(golden: GoldenSet, candidate: Answers, committed: Answers | None, thresholds: Thresholds) -> str:
    """Why a bundle should not be committed; empty if nothing speaks against it.

    Args:
        golden: the set.
        candidate: its answers.
        committed: the answers of the committed bundle; None without one.
        thresholds: from the settings.
    """
    count = count_right(golden, candidate)
    if count.not_finite:
        return f"{count.not_finite} of {golden.questions} questions are answered with NaN or infinity"
    if count.unread == len(golden.items):
        return "it answers no item"
    least = max(thresholds.min_accuracy, golden.min_accuracy)
    if golden.expected and count.accuracy < least:
        return f"the accuracy is {count.accuracy:.1%}, required: {least:.1%}"
    if committed is None:
        return ""
    before = count_right(golden, committed)
    if golden.expected and count.accuracy < before.accuracy - thresholds.max_accuracy_loss:
        return f"the accuracy is {count.accuracy:.1%}, the committed bundle's {before.accuracy:.1%}"
    pairs = [pair for item in golden.items if not item.expected for pair in _pair_answers(item, candidate, committed)]
    share = sum(given == other for given, other in pairs) / len(pairs) if pairs else 1.0
    agrees = share >= thresholds.min_agreement
    return "" if agrees else f"it agrees with the committed bundle on {share:.1%} of the questions"


def _pair_answers(item: GoldenItem, candidate: Answers, committed: Answers) -> list[tuple[str, str]]:
    """Both bundles' answers to an item's questions, of those that the committed one answered."""
    missing = [""] * len(item.texts)
    given, other = (answers.get(item.item) or missing for answers in (candidate, committed))
    return [pair for pair in zip(given, other, strict=False) if pair[1]]
