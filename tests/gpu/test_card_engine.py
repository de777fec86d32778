"""The engine on a real card: the answers of the CPU, and no more memory than planned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.bundle import Bundle, bundle_folder
from common.sealing import ConvertLimits, run_convert
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from tests.gpu.conftest import SHAPES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

CARD, CPU = "cuda:0", "cpu"
MANY = 32  # rows: the largest call on a card
Scores = np.ndarray[Any, np.dtype[np.float64]]


class Demo:
    """A sealed model and its warm engines."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder, self.bundle = folder, bundle
        self._engines: dict[tuple[str, str], Any] = {}

    def engine(self, device: str, precision: str) -> Any:  # noqa: ANN401  an engine
        """Load and warm up, at the first call."""
        from inference.runner.engines.ofa.load import load_ofa  # noqa: PLC0415  imports torch

        if (device, precision) not in self._engines:
            options = LoadOptions(device, precision, 2)
            engine = load_ofa(self.folder, self.bundle, options, lambda _phase, _share: None)
            engine.warm_up(lambda _phase, _share: None)
            self._engines[device, precision] = engine
        return self._engines[device, precision]


@pytest.fixture(scope="module")
def demo(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Demo:  # noqa: ANN401  a module
    """The demo model, sealed and loaded once for each device and precision."""
    del torch  # asked for its skip
    state = tmp_path_factory.mktemp("demo")
    bundle = run_convert(SHAPES / "v1.0.0", state, "v1.0.0", ConvertLimits(), "float32")
    return Demo(bundle_folder(state, bundle.bundle_digest), bundle)


def items(*, lengths_differ: bool) -> list[EntailmentItem]:
    """As many items as one call carries, with the demo's pictures in turn."""
    pictures = [path.read_bytes() for path in sorted((SHAPES / "pictures").glob("*.png"))]
    words = ["really " * (number % 5 if lengths_differ else 0) for number in range(MANY)]
    return [
        EntailmentItem(pictures[number % len(pictures)], (f"there are {more}two red circles.",), "")
        for number, more in enumerate(words)
    ]


def answers(engine: Any, asked: Sequence[EntailmentItem], rows: int) -> Scores:  # noqa: ANN401  an engine
    """(items, 3) of calls of some rows."""
    found = []
    for start in range(0, len(asked), rows):
        ranges = [RowRange(engine.prepare(item), 0, 1) for item in asked[start : start + rows]]
        found += [(row.yes, row.no, row.maybe) for (row,) in engine.compute(ranges)]
    return np.array(found)


def test_a_load_and_its_largest_calls_take_about_the_memory_that_was_planned(torch: Any, demo: Demo) -> None:  # noqa: ANN401  a module
    """What the libraries keep counts too; the context, which exists before the plan asks for free memory, does not."""
    from inference.runner.engines.ofa.load import estimate_ofa_memory  # noqa: PLC0415  imports torch
    from inference.runner.plan import plan_load  # noqa: PLC0415  beside it

    free, _ = torch.cuda.mem_get_info(0)
    engine = demo.engine(CARD, "bfloat16")
    for lengths_differ in (False, True):
        answers(engine, items(lengths_differ=lengths_differ), MANY)
    used = free - torch.cuda.mem_get_info(0)[0]

    planned = plan_load(CARD, estimate_ofa_memory(demo.folder, demo.bundle, LoadOptions(CARD, "bfloat16", 1)), None)
    assert used <= planned.needed * 1.1


def test_calls_are_captured(demo: Demo) -> None:
    """Every size of a call is a CUDA graph after the warm-up, in either precision."""
    for precision in ("bfloat16", "float32"):
        assert demo.engine(CARD, precision).gpu.is_captured


def test_no_size_of_a_call_takes_memory_after_the_warm_up(torch: Any, demo: Demo) -> None:  # noqa: ANN401  a module
    """All but the features of pictures lies at fixed addresses."""
    engine = demo.engine(CARD, "bfloat16")
    answers(engine, items(lengths_differ=True), MANY)
    reserved = torch.cuda.memory_reserved()

    for rows in (1, 3, 7, 16, 20, MANY):
        answers(engine, items(lengths_differ=True), rows)

    assert torch.cuda.memory_reserved() <= reserved + (20 << 20)


@pytest.mark.parametrize(("precision", "close"), [("float32", 2e-3), ("bfloat16", 0.05)])
def test_a_card_answers_as_the_cpu_does(demo: Demo, precision: str, close: float) -> None:
    """One by one, in calls padded to the next size, and in the largest, whose shorter texts are masked."""
    asked = [*items(lengths_differ=False), *items(lengths_differ=True)]
    expected = answers(demo.engine(CPU, "float32"), asked, 8)
    engine = demo.engine(CARD, precision)

    for rows in (1, 3, MANY):
        assert np.abs(answers(engine, asked, rows) - expected).max() < close
