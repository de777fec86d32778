"""Writes docs/faults.md: which test provokes which numbered fault.

Read from the tests' own marks, `@pytest.mark.fault("K13")` and `marks=pytest.mark.fault("I1")`, without running them.
Run as `python -m scripts.faults`; with `--check` nothing is written, and the exit code says whether the page is fresh.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.md"
SECTIONS = {
    "K": "kill and crash", "D": "disk", "N": "hub and network", "R": "release", "C": "content", "P": "paths and code",
    "S": "swap and serving", "I": "input", "B": "breaker and time", "U": "supervision",
}  # fmt: skip
BY_COMMAND = {"K4": "`make chaos`: the updater ended at every system call of a whole cycle"}
HEAD = """# Faults that are provoked, and where

Made by `python -m scripts.faults` from the marks of the tests; a test holds it fresh. All run in `make test` unless a
command is named.
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
    found: dict[str, set[str]] = {number: {where} for number, where in BY_COMMAND.items()}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, test in marks_of(path):
            found.setdefault(number, set()).add(f"`{path.relative_to(ROOT)}::{test}`")
    lines = [HEAD]
    for letter, title in SECTIONS.items():
        numbers = sorted((number for number in found if number[0] == letter), key=lambda number: int(number[1:]))
        if numbers:
            lines += [f"## {letter} {title}", ""]
            lines += [f"- **{number}** " + " · ".join(sorted(found[number])) for number in numbers]
            lines.append("")
    return "\n".join(lines)


def marks_of(path: Path) -> Iterator[tuple[str, str]]:
    """Fault numbers and test names of one file, of decorators, of parameters, and of the whole module."""
    tree = ast.parse(path.read_text())
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [node for node in tests if node.name.startswith("test_")]
    for test in tests:
        for decorator in test.decorator_list:
            yield from ((number, test.name) for number in numbers_in(decorator, tree))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "pytestmark" for target in node.targets):
            yield from ((number, test.name) for number in numbers_in(node.value, tree) for test in tests)


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
