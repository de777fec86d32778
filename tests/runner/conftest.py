"""What the runner's tests share."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from tests.runner.stage import Stage

MakeStage = Callable[..., Stage]


@pytest_asyncio.fixture
async def make_stage(tmp_path: Path) -> AsyncIterator[MakeStage]:
    """Make runners that are gone when the test is."""
    stages: list[Stage] = []

    def make(**spec: float | str) -> Stage:
        stages.append(Stage(tmp_path, **spec))
        return stages[-1]

    yield make
    for stage in stages:
        if stage.process.pid:
            stage.process.kill("the test is over")
            await stage.ended()


@pytest_asyncio.fixture
async def stage(make_stage: MakeStage) -> Stage:
    """A runner with usual limits, not yet spawned."""
    return make_stage()
