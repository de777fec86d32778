"""What the encoder's attention adds for positions, made quickly and kept only as far as memory is to spare.

A layer's bias is a product of positions, the same for all layers, plus what a distance within the
picture, or within the text, means to that layer. All layers together would be as large as a third of
the weights in bfloat16. A picture's distances depend on differences of rows and of columns alone, so
a strip 15 times smaller holds them: row r of patches reads a window of the strip that moves with r.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STEP = {torch.bfloat16: 32, torch.float32: 1}  # tokens: to whole steps, attention in bfloat16 takes 15 % less time


def rounded(tokens: int, dtype: torch.dtype) -> int:
    """So many tokens, or a few more that are hidden."""
    step = STEP[dtype]
    return -(-tokens // step) * step


class EncoderBias:
    """The biases of all encoder layers for the text length at hand. Device thread only."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        pictures: Sequence["PictureDistances"],
        texts: Sequence[Tensor],
        keep_bytes: int,
        calls_of_a_load: int = 2,
    ) -> None:
        """Make nothing yet.

        Args:
            query: (heads, tokens, size) of positions, scaled; tokens = patches + longest text.
            key: (heads, size, tokens) of positions.
            pictures: of each table; one table serves all layers if they share it.
            texts: (heads, longest text, longest text), of each table.
            keep_bytes: how much may be kept made, one more with every call, so that a load need not wait for them
                nor find room for them beside its own; what is not kept is made again in every call.
            calls_of_a_load: to warm up and to measure; nothing is kept before callers come.
        """
        heads, tokens, _ = query.shape
        self._patches = pictures[0].patches
        self._longest = self._text = tokens - self._patches
        size = rounded(tokens, query.dtype)
        self._query = torch.nn.functional.pad(query, (0, 0, 0, size - tokens))
        self._key = torch.nn.functional.pad(key, (0, size - tokens))
        self._pictures = pictures
        self._texts = texts
        bytes_each = heads * size * size * query.element_size()
        self.most_kept = min(len(pictures), keep_bytes // bytes_each)
        self._spare = query.new_empty(heads * size * size)
        self._kept: list[Tensor] = []
        self._calls_to_go = calls_of_a_load

    def show(self, text: int) -> int:
        """Say how long the text is, before `of` is asked.

        Returns:
            How many tokens attention shall see: patches, the text, and a few that are hidden.
        """
        before, self._text = self._text, text
        stop = min(self._longest, self._tokens - self._patches)
        for table, bias in enumerate(self._kept):
            if text > before:
                self._write_text(bias, table, before, stop)
            self._hide(bias)
        self._calls_to_go -= 1
        if self._calls_to_go < 0 and len(self._kept) < self.most_kept:
            self._keep_one_more()
        return self._tokens

    def of(self, layer: int) -> Tensor:
        """(1, heads, tokens, tokens) of the text that is shown; valid until the next is asked for."""
        table = min(layer, len(self._pictures) - 1)
        tokens = self._tokens
        if table < len(self._kept):
            return self._kept[table][None, :, :tokens, :tokens]
        heads = len(self._query)
        bias = self._spare[: heads * tokens * tokens].view(heads, tokens, tokens)
        self._make(bias, table)
        self._hide(bias)
        return bias[None]

    @property
    def _tokens(self) -> int:
        return rounded(self._patches + self._text, self._query.dtype)

    def _keep_one_more(self) -> None:
        size = self._query.shape[1]
        bias = self._query.new_empty(len(self._query), size, size)
        self._make(bias, len(self._kept))
        self._hide(bias)
        self._kept.append(bias)
        if len(self._kept) == len(self._pictures):
            self._spare = self._query.new_empty(0)

    def _make(self, bias: Tensor, table: int) -> None:
        """Write all rows and columns of (heads, tokens, tokens)."""
        patches, tokens = self._patches, bias.shape[-1]
        self._pictures[table].write(bias)
        bias[:, patches:, :patches] = 0
        bias[:, :, patches:] = 0
        words = min(self._longest, tokens - patches)
        bias[:, patches : patches + words, patches : patches + words] = self._texts[table][:, :words, :words]
        bias.baddbmm_(self._query[:, :tokens], self._key[:, :, :tokens])

    def _write_text(self, bias: Tensor, table: int, start: int, stop: int) -> None:
        """Write columns start..stop of the text again, which were hidden."""
        columns = slice(self._patches + start, self._patches + stop)
        bias[:, :, columns] = self._query @ self._key[:, :, columns]
        bias[:, self._patches : self._patches + self._longest, columns] += self._texts[table][:, :, start:stop]

    def _hide(self, bias: Tensor) -> None:
        """Hide what stands between the text and the last token that attention sees."""
        bias[:, :, self._patches + self._text : self._tokens] = -torch.inf


class PictureGrid:
    """Which number of a table two patches of a picture read; the same for all tables."""

    def __init__(self, index: Tensor) -> None:
        """Take an index.

        Args:
            index: (patches, patches) integers, rows of a table; patches in reading order.
        """
        self.patches = len(index)
        self.side = side = round(self.patches**0.5)
        self.is_regular = depends_on_differences(index, side)
        if self.is_regular:
            # The last row of patches meets all differences down to 0, the first one the rest.
            index = torch.cat([index[-side:], index[:side, side:]], dim=1)
        self.index = index.long()


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
        self._values = table.to(dtype)[grid.index].permute(2, 0, 1).contiguous()

    def write(self, bias: Tensor) -> None:
        """Write the patches' rows and columns of (heads, tokens, tokens)."""
        patches, side = self.patches, self._grid.side
        if not self._grid.is_regular:
            bias[:, :patches, :patches] = self._values
            return
        for row in range(side):
            begin = (side - 1 - row) * side
            bias[:, row * side : (row + 1) * side, :patches] = self._values[:, :, begin : begin + patches]


def depends_on_differences(index: Tensor, side: int) -> bool:
    """Whether (side², side²) tells two patches apart by the difference of their rows and columns alone."""
    if side * side != len(index):
        return False
    blocks = index.view(side, side, side, side)
    down = torch.equal(blocks[1:, :, 1:], blocks[:-1, :, :-1])
    return down and torch.equal(blocks[:, 1:, :, 1:], blocks[:, :-1, :, :-1])
