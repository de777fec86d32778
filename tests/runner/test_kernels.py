"""Compiled kernels compute what torch computes, and torch computes where there are none."""

import ctypes
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from inference.runner.engines import kernels
from inference.runner.engines.kernels import Kernels, get_kernels, use_folder
from inference.runner.engines.ofa import attention
from inference.runner.engines.ofa.attention import SelfAttention

HEADS, SIZE, TOKENS, ROWS = 3, 32, 77, 2
WIDTH = HEADS * SIZE
HAS_KERNELS = bool(shutil.which("c++")) and torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library, where this machine can build it."""
    folder = tmp_path_factory.mktemp("state") / "kernels"
    use_folder(folder)
    assert (get_kernels() is not None) is HAS_KERNELS
    return folder


@pytest.fixture(autouse=True)
def _none_stay() -> Iterator[None]:
    yield
    use_folder(None)


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _layer(dtype: torch.dtype) -> tuple[SelfAttention, torch.Tensor, list[torch.Tensor]]:
    layer = SelfAttention(WIDTH, HEADS).requires_grad_(requires_grad=False)
    for parameter in layer.parameters():
        parameter.copy_(_draw(*parameter.shape) / WIDTH**0.5)
    bias = _draw(ROWS, HEADS, TOKENS, TOKENS).to(dtype)
    bias[:, :, :, -4:] = -torch.inf
    return layer.to(dtype), _draw(ROWS, TOKENS, WIDTH).to(dtype), [bias[:, :2], bias[:, 2:]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention_is_that_of_torch(
    dtype: torch.dtype, tolerance: float, threads: int, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bias of each row, in groups of heads, with masked tokens and a number of tokens that fills no block."""
    layer, x, biases = _layer(dtype)
    expected = layer(x, biases)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    use_folder(built)
    monkeypatch.setattr(attention, "_PRODUCT_TOKENS", 1)
    monkeypatch.setattr(attention, "_has_fast_products", lambda *_: True)
    if HAS_KERNELS:
        monkeypatch.delattr(attention, "_attend_by_head")

    found = layer(x, biases)

    torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_every_thread_has_work(
    dtype: torch.dtype, tolerance: float, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call for few heads is split by queries: 16 threads take it, wherever each of them begins."""
    use_folder(built)
    found = get_kernels()
    if found is None:
        return
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


def _fail_to_build(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    elif case == "a compiler that fails":
        monkeypatch.setattr(kernels, "_FLAGS", ("-not-a-flag",))
    elif case == "a compiler that does not end":
        monkeypatch.setattr(kernels, "BUILD_SECONDS", 1e-4)
    elif case == "wrong numbers":
        monkeypatch.setattr(kernels, "_MAX_ERROR", 0.0)
    elif case == "a folder that others write":
        folder.mkdir(mode=0o700)
        folder.chmod(0o777)
    else:
        folder.write_text("a file", encoding="utf-8")


FAILURES = (
    "no compiler",
    "a compiler that fails",
    "a compiler that does not end",
    "wrong numbers",
    "a folder that others write",
    "no folder",
)


@pytest.mark.parametrize("case", FAILURES)
def test_torch_computes_without_kernels(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning tells it; nothing of a failed build is left; answers are the same."""
    layer, x, biases = _layer(torch.float32)
    expected = layer(x, biases)
    monkeypatch.setattr(attention, "_PRODUCT_TOKENS", 1)
    folder = tmp_path / "kernels"
    _fail_to_build(case, folder, monkeypatch)
    use_folder(folder)

    with caplog.at_level(logging.WARNING):
        found = [layer(x, biases) for _ in range(2)]

    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=1e-5)
    assert get_kernels() is None
    assert [str(tmp_path) in record.message for record in caplog.records] == [False]
    assert list(folder.glob("*")) == []


def test_a_library_is_compiled_once(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process of the folder needs no compiler; a library that others can write is not loaded."""
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_named: pytest.fail("compiled again"))
    use_folder(built)
    assert isinstance(get_kernels(), Kernels) is HAS_KERNELS

    for library in built.iterdir():
        library.chmod(0o722)
    use_folder(built)
    try:
        assert get_kernels() is None
    finally:
        for library in built.iterdir():
            library.chmod(0o500)
