"""A real card, and a server with the demo model on it; without a card every test here is skipped, and says so."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from common.bundle import Bundle
from common.sealing import ConvertLimits, run_convert
from dev.harness.pointer import commit_bundle
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


@pytest.fixture(scope="session")
def sealed(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Bundle]]:  # noqa: ANN401  a module
    """A state folder with the demo's two revisions, as bundles of the demanding engine."""
    del torch  # asked for its skip
    from tests.gpu.demanding_engine import relabel  # noqa: PLC0415  imports torch

    state = tmp_path_factory.mktemp("sealed")
    bundles = [run_convert(SHAPES / revision, state, revision, ConvertLimits()) for revision in ("v1.0.0", "v1.1.0")]
    return state, {bundle.revision: relabel(state, bundle) for bundle in bundles}


@pytest.fixture
def idle(sealed: tuple[Path, Mapping[str, Bundle]], tmp_path: Path) -> Iterator[Stack]:
    """A server that would serve the demo model with the demanding engine, not started."""
    from tests.gpu.demanding_engine import ENGINES  # noqa: PLC0415  imports torch

    state, bundles = sealed
    stack = Stack(tmp_path, committed=None, runner={"extra_engines": ENGINES, "min_timeout_seconds": 30.0})
    shutil.copytree(state / "bundles", tmp_path / "bundles", dirs_exist_ok=True)
    commit_bundle(tmp_path, bundles["v1.0.0"], "shapes")
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
