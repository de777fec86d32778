"""A Chinese page says what the English one does: the same headings in number and level, and the same commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAIRS = {"README.zh-CN.md": "README.md"} | {
    str(page.relative_to(ROOT)): next(
        place for place in (f"docs/{page.name}", f"docs/how-to/{page.name}") if (ROOT / place).exists()
    )
    for page in (ROOT / "docs" / "zh").glob("*.md")
}
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def outline(page: str) -> tuple[list[str], list[str]]:
    """The levels of a page's headings, and its blocks of commands."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(r"^#{1,6}(?= )", _FENCE.sub("", text), re.MULTILINE), _FENCE.findall(text)


@pytest.mark.parametrize(("chinese", "english"), PAIRS.items(), ids=list(PAIRS))
def test_a_translation_has_the_headings_and_commands_of_its_original(chinese: str, english: str) -> None:
    """Whoever changes one is led to the other."""
    assert outline(chinese) == outline(english)
