"""The encoder's position biases are the same for any number of heads in the buffer and any text."""

import pytest
import torch
from torch import Tensor

from inference.runner.engines.ofa.positions import (
    EncoderBias,
    PictureDistances,
    PictureGrid,
    depends_on_differences,
    round_up_tokens,
)

HEADS, SIDE, LONGEST, SIZE, TABLES, GRID = 3, 4, 20, 8, 3, 6
PATCHES = SIDE * SIDE
TOKENS = PATCHES + LONGEST
HEAD_BYTES = TOKENS**2 * 4
EVERYTHING, NOTHING = 1 << 40, 0


def _regular_index() -> Tensor:
    rows, columns = torch.arange(PATCHES) // SIDE, torch.arange(PATCHES) % SIDE
    down = rows[:, None] - rows[None, :] + GRID - 1
    right = columns[:, None] - columns[None, :] + GRID - 1
    return (down * (2 * GRID - 1) + right).to(torch.int32)


class Drawn:
    """Numbers of a model, and its biases written out plainly."""

    def __init__(self, index: Tensor, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(5)
        self.index, self.dtype = index, dtype
        self.query = torch.randn(HEADS, TOKENS, SIZE, generator=draw).to(dtype)
        self.key = torch.randn(HEADS, SIZE, TOKENS, generator=draw).to(dtype)
        self.tables = torch.randn(TABLES, (2 * GRID - 1) ** 2, HEADS, generator=draw)
        self.texts = torch.randn(TABLES, HEADS, LONGEST, LONGEST, generator=draw).to(dtype)

    def bias(self, made_bytes: int = EVERYTHING) -> EncoderBias:
        grid = PictureGrid(self.index)
        pictures = [PictureDistances(table, grid, self.dtype) for table in self.tables]
        return EncoderBias(self.query, self.key, pictures, list(self.texts), made_bytes)

    def plainly(self, layer: int, text: int) -> Tensor:
        bias = self.query.float() @ self.key.float()
        bias[:, :PATCHES, :PATCHES] += self.tables[layer].to(self.dtype)[self.index.long()].permute(2, 0, 1)
        bias[:, PATCHES:, PATCHES:] += self.texts[layer]
        return bias[:, : PATCHES + text, : PATCHES + text]


def whole(biases: EncoderBias, layer: int, text: int) -> Tensor:
    """(heads, tokens, tokens) of one layer."""
    return torch.cat([bias[0].clone() for bias in biases.compute(layer, text)])


@pytest.mark.parametrize(("made_bytes", "heads"), [(EVERYTHING, 3), (2 * HEAD_BYTES, 2), (NOTHING, 1)])
def test_biases_are_the_sum_of_positions_and_distances(made_bytes: int, heads: int) -> None:
    """For texts in any order and any size of the buffer."""
    drawn = Drawn(_regular_index())
    biases = drawn.bias(made_bytes)
    assert heads == biases.heads_at_once

    for text in (3, LONGEST, 7, 1, 12):
        for layer in range(TABLES):
            torch.testing.assert_close(whole(biases, layer, text), drawn.plainly(layer, text))


@pytest.mark.parametrize("made_bytes", [EVERYTHING, NOTHING])
def test_filler_tokens_are_masked(made_bytes: int) -> None:
    """In bfloat16 the number of tokens is rounded up to a step; tokens after the text are masked."""
    drawn = Drawn(_regular_index(), torch.bfloat16)
    biases = drawn.bias(made_bytes)

    for text in (3, LONGEST, 15, 17, 16):
        tokens, seen = biases.count_tokens(text), PATCHES + text
        bias = whole(biases, 1, text)

        assert bias.shape == (HEADS, tokens, tokens) == (HEADS, round_up_tokens(seen, torch.bfloat16), tokens)
        assert bool((bias[:, :, seen:] == -torch.inf).all())
        expected = drawn.plainly(1, text)
        torch.testing.assert_close(bias[:, :seen, :seen].float(), expected, atol=0.1, rtol=0.02)


def test_an_index_that_does_not_depend_on_differences_is_looked_up() -> None:
    """A source may contain any index; it is looked up cell by cell."""
    index = _regular_index()
    index[3, 9] = 0
    drawn = Drawn(index)

    biases = drawn.bias()

    assert not depends_on_differences(index, SIDE)
    assert depends_on_differences(_regular_index(), SIDE)
    torch.testing.assert_close(whole(biases, 2, 5), drawn.plainly(2, 5))


def test_layers_share_a_single_table() -> None:
    """A model whose layers share one relative-position table has one bias for all."""
    drawn = Drawn(_regular_index())
    drawn.tables, drawn.texts = drawn.tables[:1], drawn.texts[:1]
    biases = drawn.bias()

    assert torch.equal(whole(biases, 0, 4), whole(biases, 11, 4))


def test_all_layers_use_one_buffer() -> None:
    """No memory is allocated per layer."""
    biases = Drawn(_regular_index()).bias(2 * HEAD_BYTES)
    places = {bias.data_ptr() for layer in range(TABLES) for bias in biases.compute(layer, 7)}
    assert len(places) == 1
