"""Ask ModelScope's pipeline and this engine the same about folders as people publish them.

    python -m dev.parity.compare_folders                  all folders; exit code 1 if one is answered differently
    python -m dev.parity.compare_folders --write          write docs/parity-folders.md and the tests' record too
    python -m dev.parity.compare_folders --only TEXT      only folders whose group, base or name contains it

A folder may be answered alike, refused by hotslot, or read although the pipeline cannot (it fails, or starts with
random weights). It must never be answered differently: at most 1e-5 apart on random weights, 3e-5 on trained ones, and
no label differs.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.source import ConversionRefused
from dev.parity.folder_catalog import all_folders
from dev.parity.folders import Folder, make_base
from dev.parity.items import FOLDER_ITEMS, Question, questions_of_folder
from dev.parity.ours import Scores, ask, load_source
from dev.parity.pictures import FOLDER as PICTURES
from inference.runner.conversion.ofa_plan import plan_ofa

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "parity-folders.md"
RECORD = ROOT / "tests" / "ofa" / "fixtures" / "folders.json"
TOLERANCE, TRAINED_TOLERANCE = 1e-5, 3e-5
DIGITS = 7
SAMPLED, SAMPLED_ITEMS = 2, 4  # folders of each verdict in each group, and questions, that the tests replay


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one folder."""

    group: str
    base: str
    name: str
    stock: str  # "answers", or why it does not
    ours: str  # "answers", or the sentence of the refusal
    max_gap: float
    flips: int
    notes: tuple[str, ...]
    scores: tuple[Scores, ...]  # the pipeline's

    @property
    def verdict(self) -> str:
        """One word for the table."""
        if self.ours != "answers":
            return "refused"
        if self.stock != "answers":
            return "read by hotslot alone"
        limit = TRAINED_TOLERANCE if self.base.startswith("shapes") else TOLERANCE
        return "alike" if self.max_gap <= limit and not self.flips else "DIFFERENT"


def main(arguments: Sequence[str]) -> int:
    """Compare and return the exit code."""
    parser = argparse.ArgumentParser(prog="compare_folders", description="Compare folders as people publish them.")
    parser.add_argument("--only", default="", help="part of a group, base or name")
    parser.add_argument("--write", action="store_true", help="write the page and the record")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [one for one in all_folders() if options.only in f"{one.group}/{one.base}/{one.name}"]
    outcomes = []
    for one in chosen:
        outcomes.append(_compare(one))
        print(_row(outcomes[-1]), flush=True)
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(f"{len(outcomes)} folders: {dict(counts)}")
    if options.write:
        PAGE.write_text(_page(outcomes), encoding="utf-8")
        RECORD.write_text(_record(outcomes), encoding="utf-8")
    return 1 if counts["DIFFERENT"] else 0


def _record(outcomes: Sequence[Outcome]) -> str:
    """The sample that the tests replay: of each group the first alike and the first refused folders."""
    seen: Counter[tuple[str, str]] = Counter()
    rows = []
    for one in outcomes:
        seen[one.group, one.verdict] += 1
        if one.verdict != "read by hotslot alone" and seen[one.group, one.verdict] <= SAMPLED:
            row = {"group": one.group, "base": one.base, "name": one.name, "verdict": one.verdict}
            rows.append({**row, "notes": one.notes, "refusal": one.ours, "scores": one.scores[:SAMPLED_ITEMS]})
    return json.dumps({"oracle": _versions(), "folders": rows}, indent=0, ensure_ascii=False) + "\n"


def _versions() -> dict[str, str]:
    from dev.parity.oracle import versions  # noqa: PLC0415 - tests import this module without the pipeline

    return versions()


def _compare(one: Folder) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(one.base, folder)
        one.change(folder)
        asked = questions_of_folder(is_trained=one.is_trained)
        stock, theirs = _ask_stock(folder, asked)
        ours, found, notes = _ask_ours(folder, asked)
    gap, flips = 0.0, 0
    if theirs and found:
        pairs = list(zip(theirs, found, strict=True))
        gap = max(abs(a[label] - b[label]) for a, b in pairs for label in a)
        flips = sum(max(a, key=a.__getitem__) != max(b, key=b.__getitem__) for a, b in pairs)
    rounded = tuple({label: round(score, DIGITS) for label, score in scores.items()} for scores in theirs)
    return Outcome(one.group, one.base, one.name, stock, ours, gap, flips, notes, rounded)


def _ask_stock(folder: Path, asked: Sequence[Question]) -> tuple[str, list[Scores]]:
    """The pipeline's probabilities, or why there are none."""
    from dev.parity.oracle import Oracle  # noqa: PLC0415 - tests import this module without the pipeline

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            oracle = Oracle(folder)
            random = oracle.find_random_weights()
            if random:
                return f"starts with random weights ({len(random)} tensors)", []
            return "answers", [oracle.ask(PICTURES / one.picture, one.statement, one.premise) for one in asked]
    except Exception as error:  # noqa: BLE001 - the pipeline fails with anything
        message = str(error).strip().splitlines() or [""]
        return f"fails: {type(error).__name__}: {message[0][:70]}", []


def _ask_ours(folder: Path, asked: Sequence[Question]) -> tuple[str, list[Scores], tuple[str, ...]]:
    """The engine's probabilities and the bundle's notes, or the refusal's sentence."""
    try:
        notes = plan_ofa(folder).notes
        return "answers", ask(load_source(folder), asked), notes
    except ConversionRefused as error:
        return f"{error.reason}: {error}", [], ()


def _row(one: Outcome) -> str:
    gap = f"{one.max_gap:.1e} {one.flips}" if one.verdict in ("alike", "DIFFERENT") else ""
    why = {"refused": one.ours, "read by hotslot alone": one.stock}.get(one.verdict, "")
    return f"{one.verdict:22} {one.group}: {one.name} ({one.base}) {gap} {why[:110]}"


def _page(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    listed = ", ".join(f"{name} {version}" for name, version in _versions().items())
    lines = [
        "# Published folders, compared with ModelScope's pipeline",
        "",
        f"Generated by `make parity` (`python -m dev.parity.compare_folders --write`) with {listed}.",
        "",
        f"Each folder is a model with one thing changed, and is asked {FOLDER_ITEMS} questions. *Alike*: both answer,",
        f"at most {TOLERANCE:g} apart ({TRAINED_TOLERANCE:g} for trained models), no label differs. *Refused*: hotslot",
        "does not import it. *Read by hotslot alone*: the pipeline fails, or starts with random weights.",
        "",
        f"{len(outcomes)} folders: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".",
    ]
    for group in dict.fromkeys(outcome.group for outcome in outcomes):
        lines += [
            "",
            f"## {group[:1].upper()}{group[1:]}",
            "",
            "| folder | model | result | gap | pipeline | hotslot |",
        ]
        lines.append("|---|---|---|--:|---|---|")
        for one in (outcome for outcome in outcomes if outcome.group == group):
            said = one.ours if one.ours != "answers" else "; ".join(one.notes)
            gap = f"{one.max_gap:.1e}" if one.verdict in ("alike", "DIFFERENT") else ""
            cells = (one.name, one.base, one.verdict, gap, one.stock, said)
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ")[:300] for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
