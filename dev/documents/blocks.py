"""The blocks of code of the project's Markdown pages: what each is, and whether it is run."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = frozenset({"sh", "console"})  # console: lines after "$ " are commands, the rest is what they print
PROGRAMS = frozenset({"python", "go", "java"})
SETTINGS = "toml"
DATA = frozenset({"json", "yaml", "xml", "nginx", "mermaid", "promql", "text"})  # nothing that runs
_FENCE = re.compile(r"^( *)```(\S*)\s*$")
_WHOLE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_MARK = re.compile(r"^\s*<!-- (run|not run): (.+?) -->\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code of a page."""

    page: str  # relative to the root
    line: int  # of its first fence
    language: str
    text: str
    mark: str = ""  # of the comment on the line above: "run" or "not run"
    note: str = ""  # what the comment says: the reason, or how it is run

    @property
    def is_run(self) -> bool:
        """Whether `make test-docs` executes it."""
        return self.language in COMMANDS | PROGRAMS and self.mark != "not run"

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def list_pages() -> list[Path]:
    """All Markdown files of the project that are not somebody else's."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = sorted(set(listed.stdout.splitlines()))
    return [ROOT / name for name in names if not name.startswith("dev/third_party/") and (ROOT / name).exists()]


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return parse_blocks(str(page.relative_to(ROOT)), page.read_text("utf-8"))


def parse_blocks(page: str, text: str) -> list[Block]:
    """The blocks of a page's text."""
    lines, found = text.splitlines(), []
    start, language = -1, ""
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start < 0:
            start, language = number, fence[2]
            continue
        mark = _MARK.match(lines[start - 1]) if start else None
        content = dedent("\n".join(lines[start + 1 : number]) + "\n")
        found.append(Block(page, start + 1, language, content, *(mark.groups() if mark else ())))
        start = -1
    return found


def read_all_blocks() -> list[Block]:
    """The blocks of every page."""
    return [block for page in list_pages() for block in read_blocks(page)]


def strip_blocks(text: str) -> str:
    """The text of a page without its blocks and comments."""
    return _COMMENT.sub("", _WHOLE.sub("", text))
