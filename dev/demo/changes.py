"""The chapter about answers: a weakness that the golden set cannot see is HELD, equally good revisions are kept."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from common.sealing import ConvertLimits, run_convert
from dev.demo import addresses
from dev.demo.run import DemoRun
from dev.demo.stack import AGAIN, BETTER, CONFUSED, DemoStack, name_equals
from dev.harness.demo_model import answers_of, expected_of, golden_items
from dev.harness.load import AnyQuestion
from examples.addresses import confuse as addresses_confuse
from examples.shapes import confuse as shapes_confuse
from examples.shapes.vary import vary_directory
from hotslot.updates.v1 import updates_pb2

ALL_ITEMS, GOLDEN_ITEMS = 200, 60  # of the set before anybody asked for the words
GOLDEN = "golden.jsonl"


def add_changes(demo: DemoStack, equals: int) -> DemoStack:
    """Make the revisions of the chapter for the demo's first model, and compute their right answers."""
    names = name_equals(equals)
    shapes_confuse.confuse_directory(demo.source(BETTER), demo.source(CONFUSED))
    for seed, revision in enumerate(names, start=1):
        vary_directory(demo.source(BETTER), demo.source(revision), seed)
    items, bare = golden_items(ALL_ITEMS), demo.folder / "bare"
    answers = {}
    for revision in (AGAIN, CONFUSED, *names):
        bundle = run_convert(demo.source(revision), bare, revision, ConvertLimits(), "float32")
        answers[revision] = answers_of(bare, bundle, items)
    expected = {**demo.expected, **expected_of(answers, items)}
    return replace(demo, expected=expected, more=tuple(asked for _, asked in items), words=shapes_confuse.WORDS)


def add_address_changes(demo: DemoStack) -> DemoStack:
    """The same for the model of addresses, without the equally good ones."""
    addresses_confuse.confuse_directory(demo.source(BETTER), demo.source(CONFUSED))
    questions, bare = addresses.read_questions(ALL_ITEMS), demo.folder / "bare"
    expected = dict(demo.expected)
    for revision in (BETTER, CONFUSED):
        bundle = run_convert(demo.source(revision), bare, revision, ConvertLimits(), "float32")
        expected |= addresses.answers_of(bare, bundle, questions)
    return replace(demo, expected=expected, more=tuple(questions), words=addresses_confuse.CHARACTERS)


def narrow_golden(folder: Path, words: Sequence[str]) -> int:
    """Keep the first GOLDEN_ITEMS items without these words; returns how many there are now."""
    lines = (folder / GOLDEN).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not _has_word(line, words)][:GOLDEN_ITEMS]
    partial = folder / f"{GOLDEN}.partial"
    partial.write_text("\n".join(kept) + "\n", encoding="utf-8")
    partial.replace(folder / GOLDEN)
    return len(kept)


def count_changed(run: DemoRun, before: str, after: str, questions: Sequence[AnyQuestion]) -> int:
    """How many answers of the bare engines differ between two revisions."""
    expected = run.demo.expected
    rows = [(expected[before, asked], expected[after, asked]) for asked in questions]
    return sum(_labels(old) != _labels(new) for old, new in rows)


def show_changes(run: DemoRun, found: updates_pb2.GetUpdateResponse) -> None:
    """Print what was compared: each kind of change, on live traffic and on the golden set."""
    table = Table(title=f"What a trial of {run.demo.model} saw", header_style="dim")
    for heading in ("changed answers", "callers", "golden set", "limit", ""):
        table.add_column(heading, justify="left" if heading in ("changed answers", "") else "right")
    for row in found.changes:
        callers = f"{row.count} of {row.compared}" + (f" ({row.count / row.compared:.1%})" if row.compared else "")
        golden = f"{row.expected_count} of {row.questions}"
        verdict = "[green]within[/green]" if row.passed else "[red]beyond[/red]"
        table.add_row(row.name, callers, golden, f"{row.bound:.1%}", verdict)
    run.console.print(table)


def _has_word(line: str, words: Sequence[str]) -> bool:
    row = json.loads(line)
    return any(word in text for text in (*row.get("statements", ()), *row.get("addresses", ())) for word in words)


def _labels(answer: object) -> object:
    """The label of each statement; the spans of each address as they are."""
    if not isinstance(answer, tuple) or not answer or not all(_is_scores(row) for row in answer):
        return answer
    return tuple(max(range(len(row)), key=lambda place: row[place]) for row in answer)


def _is_scores(row: object) -> bool:
    return isinstance(row, tuple) and len(row) > 0 and all(isinstance(score, float) for score in row)
