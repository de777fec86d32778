"""Every link of every document leads to a file of the project, and every anchor to a heading."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<!`)!?\[[^\]\n]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def documents() -> list[Path]:
    """All Markdown files that are kept in git."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return [ROOT / name for name in listed.stdout.splitlines() if not name.startswith("dev/third_party/")]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub and MkDocs make of a document's headings."""
    text = _FENCE.sub("", document.read_text("utf-8"))
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def links(document: Path) -> Iterator[tuple[str, str]]:
    """Each local link of a document: its path and its anchor."""
    text = _FENCE.sub("", document.read_text("utf-8"))
    for target in _LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def find_broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    broken = []
    for path, anchor in links(document):
        place = document if not path else (document.parent / path)
        if not place.exists():
            broken.append(f"{path} does not exist")
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            broken.append(f"{path}#{anchor} is no heading")
    return broken


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Files and headings."""
    assert find_broken(document) == []


def test_pages_of_the_site_link_only_to_the_site() -> None:
    """`make docs` builds docs/ alone; what lies outside is named as a path."""
    site = ROOT / "docs"
    outside = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in documents()
        if page.is_relative_to(site)
        for path, _ in links(page)
        if path and not (page.parent / path).resolve().is_relative_to(site)
    ]
    assert outside == []


def test_the_index_names_every_page_of_the_documentation() -> None:
    """Decisions and runbooks have lists of their own."""
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / path).resolve() for path, _ in links(index)}
    pages = {path for path in documents() if path.is_relative_to(ROOT / "docs") and path != index}
    own = {path for path in pages if {"decisions", "runbooks", "zh"} & set(path.relative_to(ROOT).parts)}
    assert sorted(str(path.relative_to(ROOT)) for path in pages - own - named) == []


def test_the_index_leads_to_every_event() -> None:
    """Whoever asks what happens when the disk is full finds it in docs/README.md."""
    page = ROOT / "docs" / "what-happens.md"
    named = {anchor for path, anchor in links(ROOT / "docs" / "README.md") if path == page.name}
    listed = {anchor for path, anchor in links(page) if not path}
    events = {anchor for anchor in anchors(page) if not anchor.startswith("what-happens")}
    assert (events - named, events - listed) == (set(), set())


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """A file, and a heading."""
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n\n[a](none.md) [b](#one-two) [c](#three)\n\n```\n[d](in-a-block.md)\n```\n")
    assert find_broken(page) == ["none.md does not exist", "#three is no heading"]
