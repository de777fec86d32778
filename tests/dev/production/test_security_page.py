"""The tests that docs/security.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_each_claim_names_a_test_that_exists() -> None:
    """By file and function."""
    named = NAMED.findall((ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    missing = [
        f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]

    assert missing == []
    assert len(named) > 20


def test_each_row_of_an_attack_has_its_test() -> None:
    """In the tables of what a hostile neighbour tries."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    attacks = [table for table in text.split("\n\n") if table.startswith("| it tries")]
    rows = [row for table in attacks for row in table.splitlines()[2:]]

    assert [row for row in rows if not NAMED.search(row)] == []
