"""Fixtures of the runner's tests."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from tests.runner.harness import RunnerHarness

MakeRunner = Callable[..., RunnerHarness]


@pytest_asyncio.fixture
async def make_runner(tmp_path: Path) -> AsyncIterator[MakeRunner]:
    """Return a factory of runners, which end with the test."""
    runners: list[RunnerHarness] = []

    def make(**spec: float | str) -> RunnerHarness:
        runners.append(RunnerHarness(tmp_path, **spec))
        return runners[-1]

    yield make
    for runner in runners:
        if runner.process.pid:
            runner.process.kill("the test is over")
            await runner.ended()


@pytest_asyncio.fixture
async def runner(make_runner: MakeRunner) -> RunnerHarness:
    """A runner with default limits, not spawned."""
    return make_runner()
