"""Compiled kernels compute what torch computes, and torch computes where there are none."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.settings import ModelSettings
from inference.runner import main
from inference.runner.engines import kernels, linear
from inference.runner.engines.kernels import Kernels, get_kernels, load_kernels
from inference.runner.engines.linear import ACTIVATIONS, Linear
from inference.runner.engines.ofa import attention
from inference.runner.engines.ofa.attention import SelfAttention
from inference.server.runner_client.start import list_options
from inference.server.runner_specs import runner_spec
from inference.server.settings import RunnerSection, ServerSettings
from tests.runner.kernel_builds import load_into, needs_kernels

HEADS, SIZE, TOKENS, ROWS = 3, 32, 77, 2
WIDTH = HEADS * SIZE


pytestmark = pytest.mark.usefixtures("kernels_unloaded")


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _layer(dtype: torch.dtype) -> tuple[SelfAttention, torch.Tensor, list[torch.Tensor]]:
    layer = SelfAttention(WIDTH, HEADS).requires_grad_(requires_grad=False)
    for parameter in layer.parameters():
        parameter.copy_(_draw(*parameter.shape) / WIDTH**0.5)
    bias = _draw(ROWS, HEADS, TOKENS, TOKENS).to(dtype)
    bias[:, :, :, -4:] = -torch.inf
    return layer.to(dtype), _draw(ROWS, TOKENS, WIDTH).to(dtype), [bias[:, :2], bias[:, 2:]]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention_is_that_of_torch(
    dtype: torch.dtype, tolerance: float, threads: int, built_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bias of each row, in groups of heads, with masked tokens and a number of tokens that fills no block."""
    layer, x, biases = _layer(dtype)
    expected = layer(x, biases)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    load_kernels(built_kernels)
    monkeypatch.setattr(attention, "_PRODUCT_TOKENS", 1)
    monkeypatch.setattr(attention, "_has_fast_products", lambda *_: True)
    monkeypatch.delattr(attention, "_attend_by_head")

    found = layer(x, biases)

    torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_every_thread_has_work(
    dtype: torch.dtype, tolerance: float, built_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call for few heads is split by queries: 16 threads take it, wherever each of them begins."""
    load_kernels(built_kernels)
    found = get_kernels()
    assert found is not None
    asked = []

    def run_in_turn(take: Callable[[int], None], work: int, threads: int, _flags: int) -> None:
        asked.append(threads)
        for _ in range(threads):
            take(work)

    taking = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel = ctypes.CFUNCTYPE(None, taking, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(run_in_turn)
    monkeypatch.setattr(found, "_parallel", ctypes.cast(parallel, ctypes.c_void_p))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    tokens = 400
    projections, bias = _draw(tokens, 3, HEADS, SIZE).to(dtype), _draw(1, tokens, tokens).to(dtype)
    mixed = projections.new_zeros(tokens, HEADS, SIZE)
    found.attend(projections, bias, 1, mixed)

    query, key, value = projections[:, :, 1].float().unbind(1)
    expected = torch.softmax(query @ key.T + bias[0].float(), -1) @ value
    torch.testing.assert_close(mixed[:, 1].float(), expected, atol=tolerance, rtol=tolerance)
    assert asked == [16]


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 160), (1040, 96)])
def test_linear_layers_of_many_rows_are_those_of_torch(
    inputs: int, outputs: int, threads: int, built_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain, activated and with a sum; also for a part of a larger tensor. oneDNN is not asked."""
    layer = Linear(inputs, outputs).requires_grad_(requires_grad=False)
    layer.weight.copy_(_draw(outputs, inputs) / inputs**0.5)
    layer.bias.copy_(_draw(outputs))
    x, other = _draw(3, 211, 2 * inputs)[..., inputs:], _draw(3, 211, outputs)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    load_kernels(built_kernels)
    monkeypatch.delattr(linear, "multiply")
    monkeypatch.delattr(linear, "multiply_add")

    found = [layer(x), layer.forward_add(x, other), *(layer.forward_activated(x, name) for name in ACTIVATIONS)]

    torch.set_num_threads(before)
    expected = [plain, plain + other, *(activate(plain.clone()) for activate in ACTIVATIONS.values())]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize(("rows", "outputs", "dtype"), [(511, 64, 0), (512, 48, 0), (512, 64, 1)])
def test_onednn_computes_what_kernels_do_not(
    rows: int, outputs: int, dtype: int, built_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows, sizes that fill no block, and bfloat16."""
    load_kernels(built_kernels)
    monkeypatch.delattr(Kernels, "multiply")
    layer = Linear(32, outputs).requires_grad_(requires_grad=False).to((torch.float32, torch.bfloat16)[dtype])

    assert layer(_draw(rows, 32).to(layer.weight.dtype)).shape == (rows, outputs)


@needs_kernels
def test_without_threads_of_torch_only_one_thread_uses_kernels(
    built_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On several threads torch's operations are faster."""
    monkeypatch.setattr(kernels, "_find_parallel", ctypes.c_void_p)
    events = load_into(built_kernels)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(get_kernels() is not None)

    assert [name for name, _ in events] == ["kernels_unused"]
    assert found == [True, False]


@pytest.mark.parametrize("is_on", [True, False])
def test_the_setting_decides_whether_a_runner_has_kernels(
    is_on: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    """From the setting to the runner's argument and its load's options."""
    model = ModelSettings(name="shapes")
    settings = ServerSettings(state_dir=tmp_path, models=(model,), runner=RunnerSection(compiled_kernels=is_on))
    expected = tmp_path / "kernels" if is_on else None

    descriptors = ["--data-fd=3", "--control-fd=4", "--call-record-fd=5"]
    arguments = main.make_parser().parse_args([*descriptors, *list_options(runner_spec(settings, model))])

    assert arguments.kernels == expected
