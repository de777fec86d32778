"""What CONTRIBUTING.md and README.md name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MADE = (".venv/", ".tools/", "dist/", "state/")  # by make, or by what runs
PATH = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*/?")
KINDS = {".py", ".md", ".toml", ".conf", ".proto", ".binpb", ".txt", ".json"}


def named_paths(text: str) -> list[str]:
    """Every word in backticks, or target of a link, that looks like a path: it has a slash inside or a known suffix."""
    outside_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    words = re.findall(r"`([^`\n]+)`", outside_blocks) + re.findall(r"\]\(([^)#:]+)\)", outside_blocks)
    paths = [word.partition("::")[0] for word in words]
    return [
        path
        for path in paths
        if PATH.fullmatch(path) and ("/" in path or Path(path).suffix in KINDS) and not path.startswith(MADE)
    ]


def exists(path: str, text: str) -> bool:
    """Whether a path leads to something: from the root, or in a folder that the same page names."""
    folders = ["", *(name for name in named_paths(text) if (ROOT / name).is_dir())]
    return any((ROOT / folder / path).exists() or (ROOT / folder / f"{path}.py").exists() for folder in folders)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    """A reader who follows it finds it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = named_paths(text)
    assert paths
    assert [path for path in paths if not exists(path, text)] == []
