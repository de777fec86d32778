"""A real card, and a server with the demo model on it; without a card every test here is skipped, and says so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.bundles import import_bundle
from dev.harness.stack import Stack
from tests.gpu.filler import Filler

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"


@pytest.fixture(scope="session")
def torch() -> Any:  # noqa: ANN401  a module
    """The library, if there is a card that it can use."""
    library = pytest.importorskip("torch")
    if not library.cuda.is_available():
        pytest.skip("needs a CUDA device; this machine has none")
    return library


@pytest.fixture
def filler(torch: Any) -> Iterator[Filler]:  # noqa: ANN401  a module
    """Another process that uses the GPU's memory; ended after the test."""
    other = Filler(torch)
    yield other
    other.release()


@pytest.fixture
def idle(torch: Any, tmp_path: Path) -> Iterator[Stack]:  # noqa: ANN401  a module
    """A server that would serve the demo model, not started."""
    del torch  # asked for its skip
    runner = {"extra_engines": {}, "min_timeout_seconds": 30.0}
    stack = Stack(tmp_path, committed=None, runner=runner)
    import_bundle(SHAPES / "v1.0.0", tmp_path, "shapes", "v1.0.0", "float32")
    yield stack
    if hasattr(stack, "process"):
        stack.close()


@pytest.fixture
def served(idle: Stack) -> Stack:
    """The same, serving from the card."""
    idle.start()
    idle.wait_calm()
    assert idle.control.active().device == "cuda:0"
    return idle
