"""The memory estimate of an OFA load."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.bundle import Bundle
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.engines.base import LoadOptions
from inference.runner.engines.ofa.config import WEIGHTS_NAME
from inference.runner.engines.ofa.load import count_weight_bytes, estimate_ofa_memory
from inference.runner.engines.ofa.positions import PREFIX


@pytest.fixture(scope="module")
def sealed(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A converted folder; not to be changed."""
    folder = tmp_path_factory.mktemp("needs")
    return folder, convert_ofa(sources("plain"), folder, "v1", "float32")


def test_weights_are_counted_at_the_precision_of_the_computation(sealed: tuple[Path, Bundle]) -> None:
    """Exact to the byte: position tables keep their stored size, all other tensors halve in bfloat16."""
    tensors = load_file(sealed[0] / WEIGHTS_NAME)
    tables = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(PREFIX))
    rest = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith(PREFIX))

    assert tables + rest == estimate_ofa_memory(*sealed, LoadOptions("cpu", "float32", 1)).weights
    assert tables + rest // 2 == estimate_ofa_memory(*sealed, LoadOptions("cpu", "bfloat16", 1)).weights


def test_larger_calls_of_a_gpu_need_more_memory(sealed: tuple[Path, Bundle]) -> None:
    """Working memory follows the largest call and its precision."""
    cpu = estimate_ofa_memory(*sealed, LoadOptions("cpu", "float32", 1))
    card = estimate_ofa_memory(*sealed, LoadOptions("cuda:0", "float32", 1))
    half = estimate_ofa_memory(*sealed, LoadOptions("cuda:0", "bfloat16", 1))

    assert 0 < cpu.working < card.working
    assert half.working < card.working
    assert cpu.total == cpu.weights + cpu.working


def test_a_gpu_needs_memory_for_libraries_whatever_the_size_of_the_model(sealed: tuple[Path, Bundle]) -> None:
    """A small model takes hundreds of MiB of a GPU: workspaces and kernels."""
    card = estimate_ofa_memory(*sealed, LoadOptions("cuda:0", "bfloat16", 1))

    assert card.weights < 32 << 20
    assert card.working > 200 << 20


def test_a_bundle_without_weights_has_no_estimate(tmp_path: Path, sealed: tuple[Path, Bundle]) -> None:
    """The missing file is an OSError, as documented."""
    with pytest.raises(OSError, match="No such file"):
        estimate_ofa_memory(tmp_path, sealed[1], LoadOptions("cpu", "float32", 1))


def flat(header: bytes, data: bytes = b"") -> bytes:
    """Content of a safetensors file."""
    return struct.pack("<Q", len(header)) + header + data


def test_a_header_suffices_for_the_size_of_weights(tmp_path: Path) -> None:
    """Parameters count with the size of the computation's precision, position tables with their own."""
    weight = {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}
    index = {"dtype": "I32", "shape": [5], "data_offsets": [24, 44]}
    header = json.dumps({"__metadata__": {"a": "b"}, "weight": weight, f"{PREFIX}index": index}).encode()
    (tmp_path / "t.safetensors").write_bytes(flat(header, bytes(44)))

    assert count_weight_bytes(tmp_path / "t.safetensors", 4) == 48 + 20
    assert count_weight_bytes(tmp_path / "t.safetensors", 2) == 24 + 20


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 30),
        flat(b"[]"),
        flat(b"{\xff}}"),
        flat(b'{"a": [1]}'),
        flat(b'{"a": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}', b"a"),
    ],
)
def test_an_invalid_header_has_no_estimate(tmp_path: Path, content: bytes) -> None:
    """Truncated, too large, malformed, or with a dtype that `convert` does not write."""
    (tmp_path / "t.safetensors").write_bytes(content)

    with pytest.raises((ValueError, KeyError)):
        count_weight_bytes(tmp_path / "t.safetensors", 4)
