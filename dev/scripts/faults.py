"""Writes docs/faults.md: which test provokes which numbered fault.

Read from the tests' own marks, `@pytest.mark.fault("K13")` and `marks=pytest.mark.fault("I1")`, without running them,
and from the steps of `make chaos` with the report of their last run.
Run as `python -m dev.scripts.faults`; `--check` writes nothing; the exit code says whether the page is fresh.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from dev.chaos.catalog import STEPS, Step
from dev.chaos.report import Row, read_report

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
SECTIONS = {
    "K": "kill and crash", "D": "disk", "N": "hub and network", "R": "release", "C": "content", "P": "paths and code",
    "S": "swap and serving", "I": "input", "B": "breaker and time", "U": "supervision",
}  # fmt: skip
_RULE = "|---|---|--:|--:|--:|---|---|"
HEAD = """# Faults that are provoked, and where

Made by `python -m dev.scripts.faults` from the tests' marks and docs/chaos-report.json; a test holds it fresh.
All run in `make test`, whose end fails if one of them did not; but for those marked "on a GPU", and for steps of
`make chaos`, whose last run stands at the end of this page.
"""


def main() -> int:
    """Write the page, or check it."""
    page = render()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text() == page else 1
    PAGE.write_text(page)
    return 0


def render() -> str:
    """The whole page."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, test in marks_of(path):
            found.setdefault(number, set()).add(f"`{path.relative_to(ROOT)}::{test}")
    for step in STEPS:
        for number in step.faults:
            found.setdefault(number, set()).add(f'`make chaos ARGS="{step.name}"`')
    lines = [HEAD]
    for letter, title in SECTIONS.items():
        numbers = sorted((number for number in found if number[0] == letter), key=lambda number: int(number[1:]))
        if numbers:
            lines += [f"## {letter} {title}", ""]
            lines += [f"- **{number}** " + " · ".join(sorted(found[number])) for number in numbers]
            lines.append("")
    lines += ["## `make chaos`, as it last ran", "", "| step | | counted | seconds | seed | commit | date |", _RULE]
    rows = read_report()
    lines += [told(step, rows.get(step.name)) for step in STEPS]
    return "\n".join(lines) + "\n"


def told(step: Step, row: Row | None) -> str:
    """How a step of `make chaos` went last, as a row of a table."""
    if row is None:
        return f"| {step.name} | never run | | | | | |"
    ran = f"{row.count} | {row.seconds:.0f} | {row.seed} | {row.commit} | {row.date[:10]}"
    return f"| {step.name} | {row.result} | {ran} |"


def unproven(rows: Mapping[str, Row]) -> list[str]:
    """Steps of `make chaos` whose last committed run does not stand for what the page says of them."""
    found = []
    for step in STEPS:
        row = rows.get(step.name)
        if row is None or row.result != "passed" or not row.count:
            found.append(f"{step.name}: {'never run' if row is None else f'{row.result}, {row.count} counted'}")
        elif row.faults != step.faults:
            found.append(f"{step.name}: run for {row.faults}, stands for {step.faults}")
    return found


def marks_of(path: Path) -> Iterator[tuple[str, str]]:
    """Fault numbers and tests of one file: of decorators, of parameters, of the whole module; closes the quote."""
    tree = ast.parse(path.read_text())
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [node for node in tests if node.name.startswith("test_")]
    marks = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "pytestmark" for target in node.targets)
    ]
    for test in tests:
        of_test = [*test.decorator_list, *marks]
        name = f"{test.name}`{' (on a GPU)' if any(map(needs_gpu, of_test)) else ''}"
        yield from ((number, name) for node in of_test for number in numbers_in(node, tree))


def needs_gpu(node: ast.AST) -> bool:
    """Whether a decorator or a list of marks says `pytest.mark.gpu`."""
    return any(isinstance(inner, ast.Attribute) and inner.attr == "gpu" for inner in ast.walk(node))


def numbers_in(node: ast.AST, tree: ast.Module) -> Iterator[str]:
    """Numbers in `fault("K1")` calls below a node; names of the module's own tables are followed."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and getattr(inner.func, "attr", getattr(inner.func, "id", "")) == "fault":
            yield from constants_in(inner) or [
                number for table in tables_in(node, tree) for number in constants_in(table)
            ]
        elif isinstance(inner, ast.Name):
            yield from (number for table in tables_in(inner, tree) for number in numbers_in(table, tree))


def constants_in(node: ast.AST) -> list[str]:
    """Constants below a node that have the form of a fault's number."""
    values = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return [value for value in values if isinstance(value, str) and re.fullmatch(r"[A-Z]\d+", value)]


def tables_in(node: ast.AST, tree: ast.Module) -> list[ast.expr]:
    """What the module assigns to the upper-case names below a node."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id.isupper()}
    assigned = [row for row in tree.body if isinstance(row, ast.Assign)]
    return [row.value for row in assigned if getattr(row.targets[0], "id", "") in names]


if __name__ == "__main__":
    sys.exit(main())
