"""Fixtures of the runner's tests."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
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


@pytest.fixture(scope="module")
def built_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library of compiled kernels."""
    from tests.runner.kernel_builds import load_into  # noqa: PLC0415  torch: most tests here do not need it

    folder = tmp_path_factory.mktemp("state") / "kernels"
    assert [event for event, _ in load_into(folder)] == ["kernels_compiled"]
    return folder


@pytest.fixture
def kernels_unloaded() -> Iterator[None]:
    """No kernels are left in this process after a test."""
    from inference.runner.engines.kernels import load_kernels  # noqa: PLC0415  as above

    yield
    load_kernels(None)
