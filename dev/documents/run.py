"""Runs the commands and programs of pages against the demo, as a reader pastes them."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dev.documents import go_program, java_program
from dev.documents.blocks import COMMANDS, Block
from dev.documents.commands import list_lines
from dev.documents.sandbox import Sandbox
from dev.harness.waiting import eventually

BLOCK_SECONDS = 120.0
POLL_SECONDS = 0.5
PICTURE = "examples/shapes/pictures/two-red-circles.png"
_KEPT = re.compile(r"^[A-Za-z_]\w*=.*$", re.MULTILINE)  # variables that later blocks of a page use
_WITH = re.compile(r"with (.+)")
_PRINTS = re.compile(r"prints (.+?)(?:; (.+))?")
_UNTIL = re.compile(r"until (.+)")
_AFTER = re.compile(r"after (.+)")
# What stands for something of the reader's.
PLACEHOLDERS = {"OWNER/NAME": "shapes", "hub doctor MODEL": "hub doctor shapes", "relay.log": "hotslot.log"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a block."""

    block: Block
    code: int
    output: str

    @property
    def problem(self) -> str:
        """Empty if it did what the page says."""
        return "" if self.code == 0 else f"{self.block.place} ended with {self.code}:\n{self.output[-2000:]}"


def run_page(blocks: Sequence[Block], sandbox: Sandbox) -> list[Outcome]:
    """Run the blocks of one page in order, in a folder of the page's own."""
    folder = sandbox.page_folder(blocks[0].page)
    outcomes, variables, program = [], "", ""
    for block in blocks:
        if not block.is_run:
            continue
        if block.language in COMMANDS:
            text = adapt(block, sandbox)
            outcomes.append(_run_shell(block, f"{variables}{text}", folder, sandbox))
            variables += "".join(f"{line}\n" for line in _KEPT.findall(text))
        elif block.language == "python":
            program += adapt(block, sandbox)
            outcomes.append(_run_python(block, program, folder, sandbox))
    for language, tools, maker in (("go", ("go",), go_program), ("java", ("java", "mvn"), java_program)):
        parts = [block for block in blocks if block.language == language and block.is_run]
        if parts and all(map(shutil.which, tools)):
            outcomes.append(_run_parts(parts, maker, folder, sandbox))
    return outcomes


def adapt(block: Block, sandbox: Sandbox) -> str:
    """The text of a block with the sandbox's ports, and what its comment says in place of what a reader fills in."""
    text = "\n".join(list_lines(block)) + "\n" if block.language == "console" else block.text
    after = _AFTER.fullmatch(block.note)
    if block.mark == "run" and after:
        text = after[1].replace("; ", "\n") + "\n" + text
    replaced = dict(PLACEHOLDERS)
    given = _WITH.fullmatch(block.note)
    if block.mark == "run" and given:
        replaced |= dict(pair.split(" as ", 1) for pair in given[1].split(", "))
    for old, new in {**replaced, **sandbox.ports}.items():
        text = re.sub(rf"(?<![\w/-]){re.escape(old)}(?!\w)", new, text)
    # `doctor` reports what it finds on this machine, which is no mistake of the page; `watch` ends with Ctrl-C.
    text = re.sub(r"^(hotslot (?:hub )?doctor.*)$", r"\1 || test $? -eq 1", text, flags=re.MULTILINE)
    watched = r"timeout --signal=INT 3 \1 || test $? -eq 124"
    return re.sub(r"^(\S*hotslot updates watch.*)$", watched, text, flags=re.MULTILINE)


def _run_shell(block: Block, script: str, folder: Path, sandbox: Sandbox) -> Outcome:
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    note = block.note if block.mark == "run" else ""
    prints = _PRINTS.fullmatch(note)
    until = _UNTIL.fullmatch((prints[2] or "") if prints else note)
    outcome = _run(block, command, folder, sandbox)
    if prints and not outcome.code and not re.search(prints[1], outcome.output):
        return Outcome(block, 1, f"nothing that was printed is {prints[1]!r}:\n{outcome.output}")
    return _wait_until(outcome, until[1], folder, sandbox) if until and not outcome.code else outcome


def _run_python(block: Block, program: str, folder: Path, sandbox: Sandbox) -> Outcome:
    return _run(block, [sys.executable, "-m", "dev.documents.run", program], folder, sandbox)


def _run_parts(blocks: Sequence[Block], maker: ModuleType, folder: Path, sandbox: Sandbox) -> Outcome:
    """All Go or Java of a page, as one program; its outcome is that of the first block."""
    adapted = [(block, adapt(block, sandbox)) for block in blocks]
    program = maker.make_program(adapted, f"127.0.0.1:{sandbox.ports['50051']}", folder / PICTURE)
    return _run(blocks[0], maker.make_command(program, folder), maker.MODULE, sandbox)


def _run(block: Block, command: list[str], folder: Path, sandbox: Sandbox) -> Outcome:
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=sandbox.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return Outcome(block, 124, said.decode("utf-8", "replace") if isinstance(said, bytes) else said)
    return Outcome(block, ended.returncode, ended.stdout)


def _wait_until(outcome: Outcome, text: str, folder: Path, sandbox: Sandbox) -> Outcome:
    """Waits until the history of updates shows what the page promises; returns the outcome of its block."""
    block = outcome.block
    history = [sys.executable, "-m", "cli.main", "updates", "history"]
    try:
        eventually(
            lambda: re.search(text, _run(block, history, folder, sandbox).output),
            BLOCK_SECONDS,
            f"the history shows {text!r}",
            POLL_SECONDS,
        )
    except AssertionError as error:
        return Outcome(block, 1, f"{error}\n{_run(block, history, folder, sandbox).output}")
    return outcome


def run_program(source: str) -> None:
    """Run the Python of a page; `await` may stand at its top, as in a notebook."""
    import asyncio  # noqa: PLC0415
    import inspect  # noqa: PLC0415

    code = compile(source, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, object] = {"__name__": "__main__"}
    result = eval(code, names)  # noqa: S307  the project's own pages
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    run_program(sys.argv[1])
