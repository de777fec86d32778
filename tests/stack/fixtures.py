"""Stacks for tests: one that is shared and restored after each test, and separate ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.harness.stack import Stack

MakeStack = Callable[..., Stack]


@pytest.fixture(scope="package")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A server that serves r1, for all tests of a folder; it ends with the last of them."""
    stack = Stack(tmp_path_factory.mktemp("shared"), runner={"min_timeout_seconds": 1.2, "silence_seconds": 1.5})
    stack.bundle("r2")
    with stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The shared server: r1 is active, the other slot is free; restored afterwards."""
    shared_stack.calm()
    yield shared_stack
    shared_stack.calm()


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[MakeStack]:
    """Starts servers for one test, and stops them; fails if a process remains."""
    made: list[Stack] = []

    def make(*, is_started: bool = True, until_ready: bool = True, **settings: Any) -> Stack:  # noqa: ANN401
        folder = tmp_path / f"s{len(made)}"
        folder.mkdir()
        stack = Stack(folder, **settings)
        if is_started:
            stack.start(until_ready=until_ready)
            made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.close()
