"""A GPU's calls of fixed sizes give the oracle's answers; here they run on the CPU, without graphs."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dev.parity.ours import STOCK, ask
from dev.parity.variants import VARIANTS
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.engines.base import LoadOptions
from inference.runner.engines.ofa.attention import CrossAttention
from inference.runner.engines.ofa.config import WEIGHTS_NAME
from inference.runner.engines.ofa.engine import OfaEngine, OfaPreparedItem
from inference.runner.engines.ofa.gpu import (
    PICTURE_SIZES,
    ROW_SIZES,
    FixedCall,
    GpuCalls,
    choose_size,
    choose_text_sizes,
)
from inference.runner.engines.ofa.load import load_ofa
from inference.runner.engines.ofa.positions import PositionBiases, select_tables
from tests.ofa.test_agreement import TOLERANCE, assert_agree, questions_of, recorded

Fixed = Callable[[str], OfaEngine]


@pytest.fixture(scope="module")
def fixed(sources: Callable[[str], Path]) -> Fixed:
    """An engine that computes in calls of fixed sizes, by variant."""
    loaded: dict[str, OfaEngine] = {}

    def engine(variant: str) -> OfaEngine:
        if variant not in loaded:
            loaded[variant] = load_fixed(sources(variant))
        return loaded[variant]

    return engine


def load_fixed(source: Path) -> OfaEngine:
    """Load a published folder on the CPU, with the calls of a GPU."""
    with tempfile.TemporaryDirectory() as name:
        bundle = convert_ofa(source, Path(name), "test", "float32")
        engine = load_ofa(Path(name), bundle, LoadOptions("cpu", "float32", 1, STOCK), lambda _phase, _share: None)
        tables = select_tables(load_file(Path(name) / WEIGHTS_NAME))
    biases = PositionBiases(tables, engine.model.config, torch.float32, is_full=True)
    engine.gpu = GpuCalls(engine.model, biases)
    return engine


@pytest.mark.parametrize(
    ("variant", "together"), [*((variant, 5) for variant in VARIANTS), ("plain", 1), ("plain", 40)]
)
def test_calls_of_fixed_sizes_agree(variant: str, together: int, fixed: Fixed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded in rows and in tokens, and more rows than the largest call has: the same answers."""
    monkeypatch.setattr(CrossAttention, "forward", CrossAttention.attend)
    items = recorded(variant)

    answers = ask(fixed(variant), questions_of(items), together)

    assert_agree(items, answers, TOLERANCE)


def test_rows_of_an_earlier_call_leave_no_trace(fixed: Fixed) -> None:
    """Added rows hold features of an earlier call, here infinite ones."""
    engine, items = fixed("plain"), recorded("plain")[:3]
    assert engine.gpu is not None
    with torch.inference_mode():
        engine.gpu._features.fill_(float("inf"))  # noqa: SLF001  what an earlier call may leave

    assert_agree(items, ask(engine, questions_of(items), 3), TOLERANCE)


# Operations that wait for the device or copy from the host, which ends a capture.
HOST_READS = {"aten::item", "aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::equal"}


@pytest.mark.parametrize("variant", ["plain", "phrases"])
def test_a_captured_computation_does_not_wait_for_the_host(variant: str, fixed: Fixed) -> None:
    """All kernels follow from shapes; the first run may compute constants."""
    engine = fixed(variant)
    assert engine.gpu is not None
    calls = (engine.gpu._encode[2], engine.gpu._score[2, choose_text_sizes(engine.model.config)[0]])  # noqa: SLF001

    with torch.inference_mode():
        for call in calls:
            call.run()
        with torch.autograd.profiler.profile() as profile:
            for call in calls:
                call.run()
            torch.tensor([1.0]).item()  # shows that they are recorded

    found = [event.name for event in profile.function_events if event.name in HOST_READS]
    assert found == ["aten::lift_fresh", "aten::item", "aten::_local_scalar_dense"]


def test_a_call_that_cannot_be_captured_ends_the_use_of_graphs(
    sources: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of all calls are then launched one by one; it is logged once."""
    engine, items = load_fixed(sources("plain")), recorded("plain")[:3]
    assert engine.gpu is not None
    captured: list[FixedCall] = []
    events: list[tuple[str, dict[str, object]]] = []
    engine.gpu._log = lambda name, **fields: events.append((name, fields))  # noqa: SLF001  of a load's options

    def capture(call: FixedCall, _pool: object, _stream: object) -> None:
        if len(captured) == 2:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        captured.append(call)
        call.graph = call.output = Any  # type: ignore[assignment]  # would fail if it were used

    monkeypatch.setattr(FixedCall, "capture", capture)
    engine.gpu._capture(lambda _share: None)  # noqa: SLF001  without a GPU nothing is captured

    assert_agree(items, ask(engine, questions_of(items), 3), TOLERANCE)
    assert not engine.gpu.is_captured
    assert events == [("cuda_graphs_unused", {"level": "warning", "reason": "RuntimeError"})]


def test_a_call_is_padded_to_the_next_size(fixed: Fixed) -> None:
    """The sizes of rows, pictures and texts; the longest text fits."""
    config = fixed("plain").model.config

    assert [choose_size(rows, ROW_SIZES) for rows in (1, 3, 16, 17, 32)] == [1, 4, 16, 24, 32]
    assert choose_size(9, PICTURE_SIZES) == 16
    assert choose_text_sizes(config)[-1] == config.max_text_tokens


def test_equal_pictures_of_a_call_are_encoded_once(fixed: Fixed) -> None:
    """More pictures than one call of the ResNet takes; the features of equal ones are the same tensor."""
    engine = fixed("plain")
    side = engine.model.config.image_size
    draw = np.random.default_rng(1)
    pictures = [draw.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(PICTURE_SIZES[-1] + 3)]
    items = [OfaPreparedItem(pixels, pixels.tobytes(), ((0, 5, 2),)) for pixels in (*pictures, pictures[0])]

    engine._encode_pictures(items)  # noqa: SLF001  what is reused is seen here only

    assert items[0].patch_features is items[-1].patch_features
    assert len({id(item.patch_features) for item in items}) == len(pictures)
