"""The encoder's position biases are the same numbers whether they are kept, made anew, or written again for a text."""

import pytest
import torch
from torch import Tensor

from inference.runner.engines.ofa.encoder_bias import (
    EncoderBias,
    PictureDistances,
    PictureGrid,
    depends_on_differences,
    rounded,
)

HEADS, SIDE, LONGEST, SIZE, TABLES, GRID = 2, 4, 20, 8, 3, 6
PATCHES = SIDE * SIDE
TOKENS = PATCHES + LONGEST
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

    def bias(self, keep_bytes: int, calls_of_a_load: int = 0) -> EncoderBias:
        pictures = [PictureDistances(table, PictureGrid(self.index), self.dtype) for table in self.tables]
        return EncoderBias(self.query, self.key, pictures, list(self.texts), keep_bytes, calls_of_a_load)

    def plainly(self, layer: int, text: int) -> Tensor:
        bias = self.query.float() @ self.key.float()
        bias[:, :PATCHES, :PATCHES] += self.tables[layer].to(self.dtype)[self.index.long()].permute(2, 0, 1)
        bias[:, PATCHES:, PATCHES:] += self.texts[layer]
        return bias[:, : PATCHES + text, : PATCHES + text]


@pytest.mark.parametrize("keep_bytes", [EVERYTHING, 2 * HEADS * TOKENS**2 * 4, NOTHING])
def test_biases_are_the_sum_of_positions_and_distances(keep_bytes: int) -> None:
    """For texts in any order, as much kept as memory allows."""
    drawn = Drawn(_regular_index())
    biases = drawn.bias(keep_bytes)

    for text in (3, LONGEST, 7, 1, 12):
        tokens = biases.show(text)
        for layer in range(TABLES):
            torch.testing.assert_close(biases.of(layer)[0, :, :tokens, :tokens], drawn.plainly(layer, text))


@pytest.mark.parametrize("keep_bytes", [EVERYTHING, NOTHING])
def test_what_fills_up_a_step_is_hidden(keep_bytes: int) -> None:
    """In bfloat16 attention sees whole steps of tokens, of which those after the text count for nothing."""
    drawn = Drawn(_regular_index(), torch.bfloat16)
    biases = drawn.bias(keep_bytes)

    for text in (3, LONGEST, 15, 17, 16):
        tokens = biases.show(text)
        seen = PATCHES + text
        bias = biases.of(1)[0]

        assert bias.shape == (HEADS, tokens, tokens) == (HEADS, rounded(seen, torch.bfloat16), tokens)
        assert bool((bias[:, :, seen:] == -torch.inf).all())
        expected = drawn.plainly(1, text)
        torch.testing.assert_close(bias[:, :seen, :seen].float(), expected, atol=0.1, rtol=0.02)


def test_a_table_with_another_order_is_read_as_it_stands() -> None:
    """A source may bring an index of its own that no rule made; then it is looked up cell by cell."""
    index = _regular_index()
    index[3, 9] = 0
    drawn = Drawn(index)

    biases = drawn.bias(EVERYTHING)

    assert not depends_on_differences(index, SIDE)
    assert depends_on_differences(_regular_index(), SIDE)
    tokens = biases.show(5)
    torch.testing.assert_close(biases.of(2)[0, :, :tokens, :tokens], drawn.plainly(2, 5))


def test_layers_share_a_single_table() -> None:
    """A model whose layers share their distances has one bias for all."""
    drawn = Drawn(_regular_index())
    drawn.tables, drawn.texts = drawn.tables[:1], drawn.texts[:1]
    biases = drawn.bias(EVERYTHING)

    biases.show(4)

    assert torch.equal(biases.of(0), biases.of(11))


def test_one_more_is_kept_with_every_call_as_long_as_there_is_room() -> None:
    """A load makes none; what was kept once is not made again."""
    drawn = Drawn(_regular_index())
    biases = drawn.bias(2 * HEADS * TOKENS**2 * 4)
    places = []
    for _ in range(5):
        biases.show(7)
        places.append([biases.of(layer).data_ptr() for layer in range(TABLES)])

    assert biases.most_kept == 2
    assert places[0][0] == places[4][0], "kept with the first call"
    assert places[0][1] == places[0][2], "made anew in the same place"
    assert places[1][1] == places[4][1] != places[4][2], "kept with the second"
    assert places[4][2] == places[0][2], "for the third there is no room"


def test_nothing_is_kept_before_callers_come() -> None:
    """A load's own calls, to warm up and to measure, leave nothing behind."""
    biases = Drawn(_regular_index()).bias(EVERYTHING, calls_of_a_load=2)
    places = []
    for _ in range(3):
        biases.show(7)
        places.append(biases.of(0).data_ptr())

    assert places[0] == places[1] != places[2]
