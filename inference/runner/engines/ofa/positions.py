"""Attention biases from positions: they know nothing of the content.

Tokens of the encoder stand in the order picture, text. A bias is the product of two learned
projections of absolute positions, the same in every layer, plus a learned number for the distance
within the picture and within the text, of each layer (or of all).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from inference.runner.engines.ofa.config import EngineConfig

STEP = {torch.bfloat16: 32, torch.float32: 1}  # tokens: to whole steps, attention in bfloat16 takes 15 % less time


def rounded(tokens: int, dtype: torch.dtype) -> int:
    """So many tokens, or a few more that are hidden."""
    step = STEP[dtype]
    return -(-tokens // step) * step


class EncoderBias:
    """The biases of all encoder layers. Device thread only."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        pictures: Sequence["PictureDistances"],
        texts: Sequence[Tensor],
        made_bytes: int,
    ) -> None:
        """Make nothing yet.

        Args:
            query: (heads, tokens, size) of positions, scaled; tokens = patches + longest text.
            key: (heads, size, tokens) of positions.
            pictures: of each table; one table serves all layers if they share it.
            texts: (heads, longest text, longest text), of each table.
            made_bytes: about how much is made at once; one head at least.
        """
        heads, tokens, _ = query.shape
        self._patches = pictures[0].patches
        self._longest = tokens - self._patches
        size = rounded(tokens, query.dtype)
        self._query = torch.nn.functional.pad(query, (0, 0, 0, size - tokens))
        self._key = torch.nn.functional.pad(key, (0, size - tokens))
        # In float32 the product takes longer than all the rest; in bfloat16 it would be rounded once more.
        self._product = self._query @ self._key if query.dtype == torch.float32 else None
        self._pictures = pictures
        self._texts = texts
        head_bytes = size * size * query.element_size()
        self.heads_at_once = max(1, min(heads, made_bytes // head_bytes))
        self._made = query.new_empty(self.heads_at_once * size * size)

    def tokens(self, text: int) -> int:
        """How many tokens attention shall see: patches, so long a text, and a few that are hidden."""
        return rounded(self._patches + text, self._query.dtype)

    def of(self, layer: int, text: int) -> Iterator[Tensor]:
        """(1, some heads, tokens, tokens), from the first head to the last; each valid until the next is asked for."""
        tokens, heads = self.tokens(text), len(self._query)
        table = min(layer, len(self._pictures) - 1)
        for start in range(0, heads, self.heads_at_once):
            some = slice(start, min(start + self.heads_at_once, heads))
            count = some.stop - some.start
            bias = self._made[: count * tokens * tokens].view(count, tokens, tokens)
            self._make(bias, table, some)
            bias[:, :, self._patches + text :] = -torch.inf
            yield bias[None]

    def _make(self, bias: Tensor, table: int, heads: slice) -> None:
        """Write all rows and columns of (some heads, tokens, tokens)."""
        patches, tokens = self._patches, bias.shape[-1]
        words = min(self._longest, tokens - patches)
        bias[:, patches:, :patches] = 0
        bias[:, :, patches:] = 0
        self._pictures[table].write(bias, heads)
        bias[:, patches : patches + words, patches : patches + words] += self._texts[table][heads, :words, :words]
        if self._product is None:
            bias.baddbmm_(self._query[heads, :tokens], self._key[heads, :, :tokens])
        else:
            bias += self._product[heads, :tokens, :tokens]


class PictureGrid:
    """Which number of a table two patches of a picture read; the same for all tables."""

    def __init__(self, index: Tensor, *, in_strips: bool = True) -> None:
        """Take an index.

        Args:
            index: (patches, patches) integers, rows of a table; patches in reading order.
            in_strips: whether to keep differences alone, where that is possible, and to make strips of them;
                a card would rather copy the whole at once.
        """
        self.patches = len(index)
        self.side = side = round(self.patches**0.5)
        self.in_strips = in_strips and depends_on_differences(index, side)
        if self.in_strips:
            index = by_differences(index, side)
        self.index = index.long()
        self.backwards = torch.arange(side - 1, -1, -1, device=index.device)


class PictureDistances:
    """What distances within the picture mean to each head."""

    def __init__(self, table: Tensor, grid: PictureGrid, dtype: torch.dtype) -> None:
        """Take a table.

        Args:
            table: (distances, heads).
            grid: what patches read of it.
            dtype: of attention.
        """
        self.patches = grid.patches
        self._grid = grid
        # (heads, patches, patches), or (heads, 2 side − 1, 2 side − 1) by differences of rows and of columns.
        self._values = table.to(dtype)[grid.index].permute(2, 0, 1).contiguous()

    def write(self, bias: Tensor, heads: slice) -> None:
        """Write the patches' rows and columns of (some heads, tokens, tokens)."""
        patches, side, backwards = self.patches, self._grid.side, self._grid.backwards
        values, square = self._values[heads], bias[:, :patches, :patches]
        if not self._grid.in_strips:
            square.copy_(values)
            return
        # Each in one call of torch: threads wait for each other at the end of every one.
        strips = torch.index_select(values.unfold(2, side, 1).transpose(1, 2), 1, backwards).flatten(2)
        windows = strips.unfold(2, patches, side).transpose(1, 2)
        rows = square.unflatten(1, (side, side))
        torch.index_select(windows, 1, backwards, out=rows)


def by_differences(index: Tensor, side: int) -> Tensor:
    """What depends on differences alone, told by them: the key's row and column less the query's.

    Args:
        index: (side², side²) integers.
        side: of the picture, in patches.

    Returns:
        (2 side − 1, 2 side − 1), differences from 1 − side on: the last patch of a row or column, as query,
        meets those up to 0, the first one the rest.
    """
    blocks = index.view(side, side, side, side)
    rows = torch.cat([blocks[-1, :, :, :].transpose(0, 1), blocks[0, :, 1:, :].transpose(0, 1)])
    return torch.cat([rows[:, -1, :], rows[:, 0, 1:]], dim=1)


def depends_on_differences(index: Tensor, side: int) -> bool:
    """Whether (side², side²) tells two patches apart by the difference of their rows and columns alone."""
    if side * side != len(index):
        return False
    blocks = index.view(side, side, side, side)
    down = torch.equal(blocks[1:, :, 1:], blocks[:-1, :, :-1])
    return down and torch.equal(blocks[:, 1:, :, 1:], blocks[:, :-1, :, :-1])


PREFIX = "positions."
MADE_BYTES = {"cpu": 8 << 20, "cuda": sys.maxsize}  # of the encoder's at once: what caches of a CPU still hold


@dataclass(frozen=True, slots=True)
class PositionTables:
    """What the biases are made of; floats are float32 whatever the model computes in.

    tokens = patches + text, text = the longest text, tables = layers, or 1 if layers share.
    """

    encoder_query: Tensor  # (tokens, width), scaled
    encoder_key: Tensor  # (tokens, width)
    decoder_query: Tensor  # (text, width), scaled
    decoder_key: Tensor  # (text, width)
    cross_query: Tensor  # (text, width), scaled
    cross_key: Tensor  # (tokens, width)
    encoder_text: Tensor  # (tables, distances, heads)
    encoder_image: Tensor  # (tables, distances, heads)
    decoder_text: Tensor  # (tables, distances, heads)
    encoder_text_index: Tensor  # (text, text) int32, row of encoder_text
    encoder_image_index: Tensor  # (patches, patches) int32, row of encoder_image
    decoder_text_index: Tensor  # (text, text) int32, row of decoder_text


def tables_of(tensors: Mapping[str, Tensor]) -> PositionTables:
    """Take the tables out of a bundle's tensors, which hold all of them."""
    return PositionTables(**{name: tensors[PREFIX + name] for name in PositionTables.__slots__})


class PositionBiases:
    """The biases at the longest text, cut to the text at hand. Device thread only."""

    def __init__(self, tables: PositionTables, config: EngineConfig, dtype: torch.dtype) -> None:
        """Make the biases on the tables' device.

        Args:
            tables: on the device.
            config: of the model.
            dtype: that attention computes in.
        """
        self._patches = config.patches
        kind = tables.encoder_query.device.type
        grid = PictureGrid(tables.encoder_image_index, in_strips=kind == "cpu")
        self.encoder = EncoderBias(
            _heads(tables.encoder_query, config.encoder_heads).to(dtype),
            _heads(tables.encoder_key, config.encoder_heads).transpose(1, 2).to(dtype),
            [PictureDistances(table, grid, dtype) for table in tables.encoder_image],
            [_distances(table, tables.encoder_text_index).to(dtype) for table in tables.encoder_text],
            MADE_BYTES[kind],
        )
        heads = config.decoder_heads
        absolute = _heads(tables.decoder_query, heads) @ _heads(tables.decoder_key, heads).transpose(1, 2)
        hidden = torch.full(absolute.shape[-2:], -torch.inf, device=absolute.device).triu(1)
        self._decoder = [
            (absolute + _distances(table, tables.decoder_text_index) + hidden).to(dtype)[None]
            for table in tables.decoder_text
        ]
        cross = _heads(tables.cross_query, heads) @ _heads(tables.cross_key, heads).transpose(1, 2)
        self._cross = cross.to(dtype)[None]

    def decoder(self, layer: int, text: int) -> Tensor:
        """(1, heads, text, text); later tokens are hidden."""
        table = self._decoder[min(layer, len(self._decoder) - 1)]  # one serves all layers if they share it
        return table[:, :, :text, :text]

    def cross(self, text: int, source: int, tokens: int) -> Tensor:
        """(1, heads, text, tokens): `text` tokens of the decoder, the encoder's patches and `source` tokens of text.

        What is left of `tokens` is hidden.
        """
        seen = self._patches + source
        bias = self._cross[:, :, :text, :seen]
        return bias if tokens == seen else pad(bias, (0, tokens - seen), value=-torch.inf)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(n, width) to (heads, n, width / heads)."""
    return x.view(len(x), heads, -1).transpose(0, 1)


def _distances(table: Tensor, index: Tensor) -> Tensor:
    """(distances, heads) and (n, n) to (heads, n, n)."""
    return table[index.long()].permute(2, 0, 1)
