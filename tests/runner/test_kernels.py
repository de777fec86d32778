"""Compiled kernels compute what torch computes, and torch computes where there are none."""

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.settings import ModelSettings
from inference.runner import main
from inference.runner.engines import kernels, kernels_library, linear
from inference.runner.engines.kernels import Kernels, get_kernels, load_kernels
from inference.runner.engines.kernels_library import run_command
from inference.runner.engines.linear import ACTIVATIONS, Linear
from inference.runner.engines.ofa import attention
from inference.runner.engines.ofa.attention import SelfAttention
from inference.server.runner_client.start import list_options
from inference.server.runner_specs import runner_spec
from inference.server.settings import RunnerSection, ServerSettings

HEADS, SIZE, TOKENS, ROWS = 3, 32, 77, 2
WIDTH = HEADS * SIZE
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_kernels = pytest.mark.skipif(
    not HAS_COMPILER or torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"},
    reason="there is no C++ compiler, or the processor has no AVX2",
)
Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library."""
    folder = tmp_path_factory.mktemp("state") / "kernels"
    assert [event for event, _ in _load(folder)] == ["kernels_compiled"]
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "kernels"))


@pytest.fixture(autouse=True)
def _none_stay() -> Iterator[None]:
    yield
    load_kernels(None)


def _load(folder: Path) -> Events:
    events: Events = []
    load_kernels(folder, lambda name, **fields: events.append((name, fields)))
    return events


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
    dtype: torch.dtype, tolerance: float, threads: int, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bias of each row, in groups of heads, with masked tokens and a number of tokens that fills no block."""
    layer, x, biases = _layer(dtype)
    expected = layer(x, biases)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    load_kernels(built)
    monkeypatch.setattr(attention, "_PRODUCT_TOKENS", 1)
    monkeypatch.setattr(attention, "_has_fast_products", lambda *_: True)
    monkeypatch.delattr(attention, "_attend_by_head")

    found = layer(x, biases)

    torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_every_thread_has_work(
    dtype: torch.dtype, tolerance: float, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call for few heads is split by queries: 16 threads take it, wherever each of them begins."""
    load_kernels(built)
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
    inputs: int, outputs: int, threads: int, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain, activated and with a sum; also for a part of a larger tensor. oneDNN is not asked."""
    layer = Linear(inputs, outputs).requires_grad_(requires_grad=False)
    layer.weight.copy_(_draw(outputs, inputs) / inputs**0.5)
    layer.bias.copy_(_draw(outputs))
    x, other = _draw(3, 211, 2 * inputs)[..., inputs:], _draw(3, 211, outputs)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    load_kernels(built)
    monkeypatch.delattr(linear, "multiply")
    monkeypatch.delattr(linear, "multiply_add")

    found = [layer(x), layer.forward_add(x, other), *(layer.forward_activated(x, name) for name in ACTIVATIONS)]

    torch.set_num_threads(before)
    expected = [plain, plain + other, *(activate(plain.clone()) for activate in ACTIVATIONS.values())]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize(("rows", "outputs", "dtype"), [(511, 64, 0), (512, 48, 0), (512, 64, 1)])
def test_onednn_computes_what_kernels_do_not(
    rows: int, outputs: int, dtype: int, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows, sizes that fill no block, and bfloat16."""
    load_kernels(built)
    monkeypatch.delattr(Kernels, "multiply")
    layer = Linear(32, outputs).requires_grad_(requires_grad=False).to((torch.float32, torch.bfloat16)[dtype])

    assert layer(_draw(rows, 32).to(layer.weight.dtype)).shape == (rows, outputs)


def _fail_to_build(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    elif case == "a compiler that fails":
        monkeypatch.setattr(kernels_library, "_FLAGS", ("-not-a-flag",))
    elif case == "a compiler that does not end":
        monkeypatch.setattr(kernels_library, "BUILD_SECONDS", 1e-4)
    elif case == "wrong numbers":
        monkeypatch.setattr(kernels_library, "MAX_ERROR", 0.0)
    else:
        folder.write_text("a file", encoding="utf-8")


@needs_kernels
@pytest.mark.parametrize(
    ("case", "level"),
    [
        ("no compiler", "info"),
        ("a compiler that fails", "warning"),
        ("a compiler that does not end", "warning"),
        ("wrong numbers", "warning"),
        ("no folder", "warning"),
    ],
)
def test_torch_computes_without_kernels(case: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event tells it; no part of a failed build is left; answers are the same."""
    layer, x, biases = _layer(torch.float32)
    expected = layer(x, biases)
    monkeypatch.setattr(attention, "_PRODUCT_TOKENS", 1)
    folder = tmp_path / "kernels"
    _fail_to_build(case, folder, monkeypatch)

    events = _load(folder)

    torch.testing.assert_close(layer(x, biases), expected, atol=1e-5, rtol=1e-5)
    assert get_kernels() is None
    assert [(name, fields["level"], str(tmp_path) in fields["reason"]) for name, fields in events] == [
        ("kernels_unused", level, False)
    ]
    assert [path.suffix for path in folder.glob("*") if path.suffix != ".failed"] == []


@needs_kernels
@pytest.mark.parametrize("damage", ["damaged", "cut", "writable"])
def test_a_library_that_is_not_as_built_is_built_again(damage: str, folder: Path) -> None:
    """A crash of the machine, or another user, does not leave a folder without kernels for ever."""
    (library,) = folder.glob("*.so")
    content = library.read_bytes()
    library.chmod(0o722 if damage == "writable" else 0o700)
    if damage != "writable":
        library.write_bytes(content[:4096] if damage == "cut" else content[:-1] + b"?")

    events = _load(folder)

    assert get_kernels() is not None
    assert (library.read_bytes(), library.stat().st_mode & 0o777) == (content, 0o500)
    assert [name for name, _ in events] == ["kernels_removed", "kernels_compiled"]


@needs_kernels
def test_a_library_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process of the folder needs no compiler."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_arguments, **_named: pytest.fail("compiled again"))

    assert _load(folder) == []
    assert get_kernels() is not None


@needs_kernels
def test_a_failed_build_is_not_tried_again_by_the_same_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each load would wait for it; a compiler that has changed is tried."""
    compiler, calls = tmp_path / "c++", tmp_path / "calls"
    compiler.write_text(f"#!/bin/sh\necho >> {calls}\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o700)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler) if name == "c++" else None)
    counts = []
    for changed in (1, 1, 2):
        os.utime(compiler, (changed, changed))
        _load(tmp_path / "kernels")
        counts.append(len(calls.read_text(encoding="utf-8").splitlines()))

    assert counts == [1, 1, 2]


@needs_kernels
def test_the_next_compiler_is_tried_after_a_failed_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them may lack what the source needs."""
    works = next(path for name in ("g++", "c++", "clang++") if (path := shutil.which(name)))
    monkeypatch.setattr(shutil, "which", {"c++": "/bin/false", "clang++": works}.get)

    assert [name for name, _ in _load(tmp_path / "kernels")] == ["kernels_compiled"]


@needs_kernels
def test_a_folder_that_others_could_write_is_closed_and_emptied(folder: Path) -> None:
    """A mounted volume's folders may become writable for its group; its libraries are then not trusted."""
    (folder / "kernels-of-another.so").touch()
    folder.chmod(0o2770)

    events = _load(folder)

    assert [name for name, _ in events] == ["kernels_compiled"]
    assert folder.stat().st_mode & 0o22 == 0
    assert len(list(folder.iterdir())) == 1


@needs_kernels
def test_a_build_removes_what_earlier_ones_left(tmp_path: Path) -> None:
    """Libraries of other sources, and folders of builds that were killed more than an hour ago."""
    folder = tmp_path / "kernels"
    for name in (".build-old", ".build-new"):
        (folder / name).mkdir(parents=True)
    os.utime(folder / ".build-old", (time.time() - 4000,) * 2)
    (folder / "kernels-older-source.so").touch()

    _load(folder)

    assert sorted(path.name[:10] for path in folder.iterdir() if path.suffix != ".so") == [".build-new"]
    assert len(list(folder.glob("*.so"))) == 1


@needs_kernels
def test_a_build_reports_progress(tmp_path: Path) -> None:
    """A load without progress is killed."""
    shares: list[float] = []
    load_kernels(tmp_path / "kernels", progress=shares.append)

    assert len(shares) > 2
    assert all(0 <= share < 0.5 for share in shares)


def test_a_command_that_does_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler starts processes of its own."""
    monkeypatch.setattr(kernels_library, "BUILD_SECONDS", 0.3)
    pid = tmp_path / "pid"
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["/bin/sh", "-c", f"sleep 60 & echo $! > {pid}; wait"], b"", {}, lambda _share: None)

    child = Path("/proc") / pid.read_text(encoding="utf-8").strip() / "stat"
    assert not child.exists() or child.read_text(encoding="utf-8").split()[2] == "Z"


@needs_kernels
def test_without_threads_of_torch_only_one_thread_uses_kernels(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several threads torch's operations are faster."""
    monkeypatch.setattr(kernels, "_find_parallel", ctypes.c_void_p)
    events = _load(built)
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
