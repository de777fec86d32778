"""Reading the numbers of a published model from their places."""

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
def test_rows_are_read_by_themselves(stored: Tensor, tmp_path: Path) -> None:
    """A few rows of a large table are what the whole table holds there, however it lies in the file."""
    torch.save({"table": stored}, tmp_path / "weights.bin")
    with TensorReader(locate_in_file(tmp_path / "weights.bin")) as weights:
        assert torch.equal(ROWS[[5, 0, 3]], weights.get_rows("table", [5, 0, 3]))


def test_a_row_says_nothing_of_the_others(tmp_path: Path) -> None:
    """The rest of the table is still to be looked at for numbers that are none."""
    torch.save({"table": torch.tensor([[1.0], [float("nan")]])}, tmp_path / "weights.bin")
    unread = {"table"}
    with TensorReader(locate_in_file(tmp_path / "weights.bin"), unread.discard) as weights:
        weights.get_rows("table", [0])
    assert unread == {"table"}
