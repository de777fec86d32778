"""Writes docs/verification.md: the numbered list that a revision passes, with the tests of each reason.

Read from the list in the code, `updater.core.checks`, and from the tests' marks, `@pytest.mark.reason("EXECUTABLE")`.
Run as `python -m dev.scripts.verification`; `--check` writes nothing; the exit code says whether the page is fresh.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from updater.core.checks import CHECKS, Check

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "verification.md"
HEAD = """# What a revision passes before it may serve

Made by `python -m dev.scripts.verification` from `updater/core/checks.py` and the tests' marks; a test holds
it fresh. A refusal names its number and its reason: `hotslot updates show ID` prints both. What is refused goes into
quarantine by its source digest and is not tried again; *not ready* and *changed* blame nobody. A sealed bundle says
which numbers it passed: `hotslot bundle show DIGEST`.
"""
TAIL = """## Trust

A version is what it was when it was first fetched whole: the same version under another digest is an alarm
(`revision_republished`), never an update. The version floor rises on a commit only. What the list has passed is still
proven by the gate, on golden answers, and by a trial.
"""


def main() -> int:
    """Write the page, or check it."""
    page = render()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


def render() -> str:
    """The whole page."""
    tests = tests_by_reason()
    return "\n".join([HEAD, *(part for check in CHECKS for part in _told(check, tests)), TAIL])


def tests_by_reason() -> dict[str, list[str]]:
    """Tests that provoke each reason, sorted."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for reason, test in _marks_of(path):
            found.setdefault(reason, set()).add(f"{path.relative_to(ROOT)}::{test}")
    return {reason: sorted(names) for reason, names in found.items()}


def _told(check: Check, tests: dict[str, list[str]]) -> Iterator[str]:
    yield f"## {check.number}. {check.name[0].upper()}{check.name[1:]}\n"
    yield f"{check.what} *When: {check.where}.*\n"
    for reason in check.reasons:
        yield f"- **{reason}** " + " · ".join(f"`{test}`" for test in tests.get(reason, []))
    if check.reasons:
        yield ""


def _marks_of(path: Path) -> Iterator[tuple[str, str]]:
    """Reasons and tests of one file: of decorators and of their parameters."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        for inner in (inner for decorator in node.decorator_list for inner in ast.walk(decorator)):
            name = getattr(inner.func, "attr", getattr(inner.func, "id", "")) if isinstance(inner, ast.Call) else ""
            if isinstance(inner, ast.Call) and name in ("reason", "fault"):
                # `reason("X")` is a mark; a helper `fault("P1", "X", …)` of a table puts both marks.
                place = 0 if name == "reason" else 1
                values = [value.value for value in inner.args[place : place + 1] if isinstance(value, ast.Constant)]
                yield from ((value, node.name) for value in values if isinstance(value, str))


if __name__ == "__main__":
    sys.exit(main())
