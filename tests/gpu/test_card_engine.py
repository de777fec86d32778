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

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

CARD, CPU = "cuda:0", "cpu"
MANY = 32  # rows: the largest call on a card
Scores = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def sealed(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:  # noqa: ANN401  a module
    """The demo model."""
    state = tmp_path_factory.mktemp("sealed")
    bundle = run_convert(SHAPES / "v1.0.0", state, "v1.0.0", ConvertLimits(), "float32")
    return bundle_folder(state, bundle.bundle_digest), bundle


def items(*, lengths_differ: bool) -> list[EntailmentItem]:
    """As many items as one call carries, with the demo's pictures in turn."""
    pictures = [path.read_bytes() for path in sorted((SHAPES / "pictures").glob("*.png"))]
    words = ["really " * (number % 5 if lengths_differ else 0) for number in range(MANY)]
    return [
        EntailmentItem(pictures[number % len(pictures)], (f"there are {more}two red circles.",), "")
        for number, more in enumerate(words)
    ]


def load(sealed: tuple[Path, Bundle], device: str, precision: str) -> Any:  # noqa: ANN401  an engine
    """A warm engine."""
    from inference.runner.engines.ofa.load import load_ofa  # noqa: PLC0415  imports torch

    engine = load_ofa(*sealed, LoadOptions(device, precision, 1), lambda _phase, _share: None)
    engine.warm_up(lambda _phase, _share: None)
    return engine


def answers(engine: Any, asked: Sequence[EntailmentItem], rows: int) -> Scores:  # noqa: ANN401  an engine
    """(items, 3) of calls of some rows."""
    found = []
    for start in range(0, len(asked), rows):
        ranges = [RowRange(engine.prepare(item), 0, 1) for item in asked[start : start + rows]]
        found += [(row.yes, row.no, row.maybe) for (row,) in engine.compute(ranges)]
    return np.array(found)


@pytest.mark.parametrize("lengths_differ", [False, True])
@pytest.mark.parametrize(("precision", "close"), [("float32", 2e-3), ("bfloat16", 0.05)])
def test_a_card_answers_as_the_cpu_does(
    sealed: tuple[Path, Bundle],
    precision: str,
    close: float,
    lengths_differ: bool,  # noqa: FBT001  pytest passes it by name
) -> None:
    """One by one and in the largest call, whose padded rows are masked."""
    asked = items(lengths_differ=lengths_differ)
    expected = answers(load(sealed, CPU, "float32"), asked, 1)
    engine = load(sealed, CARD, precision)

    for rows in (1, MANY):
        assert np.abs(answers(engine, asked, rows) - expected).max() < close


def test_a_load_and_its_largest_calls_take_no_more_memory_than_planned(
    torch: Any,  # noqa: ANN401  a module
    sealed: tuple[Path, Bundle],
) -> None:
    """What the libraries keep counts too; the context, which exists before the plan asks for free memory, does not."""
    from inference.runner.engines.ofa.load import estimate_ofa_memory  # noqa: PLC0415  imports torch
    from inference.runner.plan import plan_load  # noqa: PLC0415  beside it

    free, _ = torch.cuda.mem_get_info(0)
    engine = load(sealed, CARD, "bfloat16")
    for lengths_differ in (False, True):
        answers(engine, items(lengths_differ=lengths_differ), MANY)
    used = free - torch.cuda.mem_get_info(0)[0]

    assert used <= plan_load(CARD, estimate_ofa_memory(*sealed, LoadOptions(CARD, "bfloat16", 1)), None).needed
