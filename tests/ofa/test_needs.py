"""What an OFA will take is foretold without loading it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.bundle import Bundle
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.engines.base import LoadOptions
from inference.runner.engines.ofa.config import WEIGHTS_NAME
from inference.runner.engines.ofa.needs import ofa_needs
from inference.runner.engines.ofa.positions import PREFIX


@pytest.fixture(scope="module")
def sealed(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A converted folder; not to be changed."""
    folder = tmp_path_factory.mktemp("needs")
    return folder, convert_ofa(sources("plain"), folder, "v1", "float32")


def test_weights_are_counted_at_the_precision_they_are_computed_in(sealed: tuple[Path, Bundle]) -> None:
    """To the byte: position tables keep theirs, everything else is halved in bfloat16."""
    tensors = load_file(sealed[0] / WEIGHTS_NAME)
    tables = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(PREFIX))
    rest = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith(PREFIX))

    assert tables + rest == ofa_needs(*sealed, LoadOptions("cpu", "float32", 1)).weights
    assert tables + rest // 2 == ofa_needs(*sealed, LoadOptions("cpu", "bfloat16", 1)).weights


def test_a_card_s_larger_calls_need_more(sealed: tuple[Path, Bundle]) -> None:
    """The working set follows the largest call and its precision."""
    cpu = ofa_needs(*sealed, LoadOptions("cpu", "float32", 1))
    card = ofa_needs(*sealed, LoadOptions("cuda:0", "float32", 1))
    half = ofa_needs(*sealed, LoadOptions("cuda:0", "bfloat16", 1))

    assert 0 < cpu.working < card.working
    assert half.working < card.working
    assert cpu.total == cpu.weights + cpu.working


def test_a_bundle_without_its_weights_foretells_nothing(tmp_path: Path, sealed: tuple[Path, Bundle]) -> None:
    """The load itself says what is wrong with it."""
    with pytest.raises(OSError, match="No such file"):
        ofa_needs(tmp_path, sealed[1], LoadOptions("cpu", "float32", 1))
