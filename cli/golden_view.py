"""Golden sets on the screen: what is in one, and how a model's answers compare with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from cli.console import BAD, DIM, GOOD, short, text
from common.golden_folder import GoldenFolder
from common.golden_set import LABELS, GoldenItem

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Compared:
    """One statement of one item: what a set says, and what the model said now."""

    item: GoldenItem
    statement: str
    expected: str  # empty if the set expects nothing
    recorded: str  # empty if nothing was recorded
    answered: str  # a word of LABELS, or why there is none

    @property
    def is_right(self) -> bool:
        """Whether it agrees with the expectation, or where there is none, with what was recorded."""
        return self.answered == (self.expected or self.recorded or self.answered) and self.answered in LABELS


def compare(golden: GoldenFolder, answers: Mapping[str, Sequence[str]]) -> list[Compared]:
    """Lay answers, by item, beside the set, one row a statement."""
    rows = []
    for item in golden.golden.items:
        said = answers[item.item]
        for position, statement in enumerate(item.texts):
            expected = item.expected[position] if item.expected else ""
            recorded = item.answers[position] if position < len(item.answers) else ""
            answered = said[position] if position < len(said) else "no answer"
            rows.append(Compared(item, statement, expected, recorded, answered))
    return rows


def show_set(golden: GoldenFolder) -> RenderableType:
    """What is in a set."""
    items = golden.golden.items
    statements = sum(len(item.texts) for item in items)
    expecting = sum(len(item.expected) for item in items)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(text(("set", DIM)), text(str(golden.folder)))
    table.add_row(text(("digest", DIM)), text(short(golden.digest)))
    table.add_row(text(("items", DIM)), text(str(len(items))))
    table.add_row(text(("pictures", DIM)), text(str(len({item.image for item in items}))))
    table.add_row(text(("statements", DIM)), text(f"{statements}, of which {expecting} have an expectation"))
    for word in LABELS:
        count = sum(item.expected.count(word) for item in items)
        if expecting:
            table.add_row(text((f"  {word}", DIM)), text(str(count)))
    return table


def show_compared(rows: Sequence[Compared]) -> RenderableType:
    """How many are right, and the first that are not."""
    judged = [row for row in rows if row.expected]
    kept = [row for row in rows if not row.expected and row.recorded]
    parts: list[RenderableType] = []
    if judged:
        parts.append(_share("expected answers", judged))
    if kept:
        parts.append(_share("recorded answers", kept))
    rest = len(rows) - len(judged) - len(kept)
    if rest:
        parts.append(text((f"{rest} statements have neither an expectation nor a recorded answer", DIM)))
    wrong = [row for row in rows if not row.is_right]
    if wrong:
        parts.append(_differing(wrong))
    return Group(*parts)


def _share(what: str, rows: Sequence[Compared]) -> RenderableType:
    right = sum(row.is_right for row in rows)
    style = GOOD if right == len(rows) else ""
    return text(f"{what}: ", (f"{right} of {len(rows)} ({right / len(rows):.1%})", style))


def _differing(rows: Sequence[Compared]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM, title=None)
    for heading in ("item", "statement", "set says", "model says"):
        table.add_column(heading, overflow="fold")
    for row in rows[:MAX_SHOWN]:
        says = row.expected or row.recorded
        table.add_row(text(row.item.item), text(row.statement), text(says), text((row.answered, BAD)))
    if len(rows) > MAX_SHOWN:
        table.add_row(text((f"… {len(rows) - MAX_SHOWN} more", DIM)), text(""), text(""), text(""))
    return table
