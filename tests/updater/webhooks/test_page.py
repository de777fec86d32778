"""docs/webhooks.md knows every event that there is, and every field that is sent."""

import ast
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from updater.core.record import Event, Outcome, Stage, Update, UpdateKind
from updater.webhooks.service import encode_event

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")


def names_in_code() -> set[str]:
    """Every event that the updater can write down."""
    found = {f"update_{outcome.lower()}" for outcome in Outcome}
    for path in (ROOT / "updater").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= set(_names_of(node))
    return found


def _names_of(node: ast.AST) -> Iterator[str]:
    """Names passed to `make_event`, `with_event` or `roll_back`, and the default of the last."""
    if isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = list(node.args[2:3]) if called in ("make_event", "with_event") else []
        given += [word.value for word in node.keywords if word.arg == "name" and called == "roll_back"]
        parts = [part.value for one in given for part in ast.walk(one) if isinstance(part, ast.Constant)]
        yield from (part for part in parts if isinstance(part, str) and "_" in part and not part.endswith("_"))
    elif isinstance(node, ast.FunctionDef) and node.name == "roll_back":
        defaults = [value.value for value in node.args.kw_defaults if isinstance(value, ast.Constant)]
        yield from (value for value in defaults if isinstance(value, str))


def test_the_page_lists_every_event() -> None:
    """And no event that does not exist."""
    table = PAGE.split("## Events", 1)[1].split("\n## ", 1)[0]
    assert names_in_code() == set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE))


def test_the_page_shows_the_fields_that_are_sent() -> None:
    """The example has exactly these fields, in order."""
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    update = Update("u", UpdateKind.RELEASE, "v1.1.0", now)
    sent = json.loads(encode_event(Event(now, "m", Stage.IDLE, "e", "", update), "id", "node"))
    example = json.loads(PAGE.split("```json", 1)[1].split("```", 1)[0])
    assert list(sent) == list(example)
    assert list(sent["update"]) == list(example["update"])
