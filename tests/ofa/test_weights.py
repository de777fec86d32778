"""Reading tensors of a published model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference.runner.conversion.tensor_io import TensorReader
from inference.runner.conversion.weight_files import locate_in_file

ROWS = torch.arange(24, dtype=torch.float32).view(6, 4)


@pytest.mark.parametrize(
    "stored",
    [ROWS, ROWS.t().contiguous().t(), ROWS.to(torch.float16)],
    ids=["rows", "columns", "half precision"],
)
def test_single_rows_are_read(stored: Tensor, tmp_path: Path) -> None:
    """Rows of a large table equal those of the whole table, for any stored order of dimensions."""
    torch.save({"table": stored}, tmp_path / "weights.bin")
    with TensorReader(locate_in_file(tmp_path / "weights.bin")) as weights:
        assert torch.equal(ROWS[[5, 0, 3]], weights.get_rows("table", [5, 0, 3]))


def test_reading_rows_does_not_check_the_others(tmp_path: Path) -> None:
    """The table still counts as unread."""
    torch.save({"table": torch.tensor([[1.0], [float("nan")]])}, tmp_path / "weights.bin")
    unread = {"table"}
    with TensorReader(locate_in_file(tmp_path / "weights.bin"), unread.discard) as weights:
        weights.get_rows("table", [0])
    assert unread == {"table"}
