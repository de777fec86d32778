"""The README's commands run as pasted; `make test-docs` runs those of all pages."""

from pathlib import Path

import pytest

from dev.documents.__main__ import choose_blocks
from dev.documents.blocks import COMMANDS, PROGRAMS, ROOT, parse_blocks, read_all_blocks, read_blocks
from dev.documents.run import adapt, run_page
from dev.documents.sandbox import Sandbox, demo_stack


@pytest.mark.timeout(300)
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """Against the demo: requests by command, Python and grpcurl, and a revision that is published."""
    with demo_stack(tmp_path / "demo") as sandbox:
        outcomes = run_page(read_blocks(ROOT / "README.md"), sandbox)
    assert [outcome.problem for outcome in outcomes if outcome.problem] == []
    assert len(outcomes) >= 4


def test_a_block_that_is_not_run_says_why() -> None:
    """In the comment above it; what runs is what `make test-docs` chooses."""
    commands = [block for block in read_all_blocks() if block.language in COMMANDS | PROGRAMS]
    assert [block.place for block in commands if block.mark == "not run" and len(block.note.split()) < 3] == []
    assert sum(map(len, choose_blocks((), commands))) >= 20


def test_a_failed_command_is_a_problem_of_its_block(tmp_path: Path) -> None:
    """With what it printed; the commands after it in the block are not run."""
    sandbox = Sandbox(tmp_path, {"50051": "1234"}, {"PATH": "/usr/bin:/bin"})
    (tmp_path / "page").mkdir()
    (block,) = parse_blocks("page.md", "```sh\necho 127.0.0.1:50051\nfalse\necho never\n```\n")
    (outcome,) = run_page([block], sandbox)
    assert (outcome.code, outcome.output) == (1, "127.0.0.1:1234\n")
    assert outcome.problem.startswith("page.md:1 ended with 1")


def test_what_a_block_must_print_is_looked_for(tmp_path: Path) -> None:
    """A command that ends well and prints something else than its page says is a problem."""
    sandbox = Sandbox(tmp_path, {}, {"PATH": "/usr/bin:/bin"})
    (tmp_path / "page").mkdir()
    page = "".join(
        f"<!-- run: prints 0 failed -->\n```sh\necho 7 calls; echo {text}\n```\n" for text in ("0 failed", "3 failed")
    )
    good, wrong = run_page(parse_blocks("page.md", page), sandbox)
    assert (good.code, wrong.code) == (0, 1)
    assert "nothing that was printed is '0 failed'" in wrong.problem


def test_a_comment_fills_in_what_is_the_readers(tmp_path: Path) -> None:
    """Words for other words, lines before the block, and the ports of the sandbox."""
    sandbox = Sandbox(tmp_path, {"9095": "1"}, {})
    page = "<!-- run: with DIR as a/b -->\n```sh\nls DIR 127.0.0.1:9095 DIRECTORY\n```\n"
    page += "<!-- run: after x = 1; y = 2 -->\n```python\nprint(x)\n```\n"
    texts = [adapt(block, sandbox) for block in parse_blocks("page.md", page)]
    assert texts == ["ls a/b 127.0.0.1:1 DIRECTORY\n", "x = 1\ny = 2\nprint(x)\n"]
