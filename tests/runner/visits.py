"""The files of the runner that one Predict visits, engines left out."""

import sys
from pathlib import Path

import pytest

from inference.server.runner_client import start
from inference.server.runner_client.start import RunnerSpec
from tests.runner.harness import RunnerHarness


async def list_runner_files(state: Path) -> list[str]:
    """Start a real runner that records its files, and send it three requests: the first starts the record."""
    listing = state / "files.txt"
    build = start.list_arguments  # the runner's command line, with another module in it

    def traced(spec: RunnerSpec, *descriptors: int) -> list[str]:
        shipped = build(spec, *descriptors)
        rest = shipped[shipped.index("inference.runner.main") + 1 :]
        return [sys.executable, "-m", "tests.runner.traced_main", str(listing), *rest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "list_arguments", traced)
        runner = RunnerHarness(state)
        try:
            await runner.load()
            for statement in ("trace", "there is a cat", "there is a dog"):
                await runner.ask([statement])
        finally:
            runner.process.kill("done")
            await runner.ended()
    return listing.read_text(encoding="utf-8").splitlines()
