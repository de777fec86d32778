"""Attention biases that depend on positions only.

The encoder's tokens are the picture's patches followed by the text. A bias is the sum of two terms: the product of
two learned projections of absolute positions, which all layers share, and a learned value for the relative position
within the picture or the text, which each layer has of its own (or which all layers share).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from inference.runner.engines.ofa.config import EngineConfig

STEP = {torch.bfloat16: 32, torch.float32: 1}  # multiple of tokens at which bfloat16 attention is 15 % faster
GPU_STEP = 32  # in both precisions: the alignment of a mask that fused attention takes


def round_up_tokens(tokens: int, dtype: torch.dtype) -> int:
    """Round a number of tokens up to the step of a dtype; the added tokens are masked."""
    step = STEP[dtype]
    return -(-tokens // step) * step


def round_up_gpu_tokens(tokens: int) -> int:
    """Round a number of tokens up for a GPU; the added tokens are masked."""
    return -(-tokens // GPU_STEP) * GPU_STEP


class EncoderBias:
    """Computes the biases of the encoder layers on demand, in one reused buffer. Device thread only."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        pictures: Sequence["PictureDistances"],
        texts: Sequence[Tensor],
        buffer_bytes: int,
    ) -> None:
        """Allocate the buffer.

        Args:
            query: (heads, tokens, size), projected positions, scaled; tokens = patches + longest text.
            key: (heads, size, tokens), projected positions.
            pictures: of each layer, or one that all layers share.
            texts: (heads, longest text, longest text), of each layer, or one that all layers share.
            buffer_bytes: size of the buffer; it holds at least one head.
        """
        heads, tokens, _ = query.shape
        self._patches = pictures[0].patches
        self._longest = tokens - self._patches
        size = round_up_tokens(tokens, query.dtype)
        self._query = torch.nn.functional.pad(query, (0, 0, 0, size - tokens))
        self._key = torch.nn.functional.pad(key, (0, size - tokens))
        # In float32 the product is the slowest part, so it is cached; in bfloat16 caching would round it once more.
        self._product = self._query @ self._key if query.dtype == torch.float32 else None
        self._pictures = pictures
        self._texts = texts
        head_bytes = size * size * query.element_size()
        self.heads_at_once = max(1, min(heads, buffer_bytes // head_bytes))
        self._buffer = query.new_empty(self.heads_at_once * size * size)

    def count_tokens(self, text: int) -> int:
        """Tokens of the encoder for a text of this length: patches, text and masked filler."""
        return round_up_tokens(self._patches + text, self._query.dtype)

    def compute(self, layer: int, text: int) -> Iterator[Tensor]:
        """Yield (1, some heads, tokens, tokens) for consecutive heads; each is overwritten by the next.

        Args:
            layer: number of the encoder layer.
            text: tokens of the longest text.
        """
        tokens, heads = self.count_tokens(text), len(self._query)
        table = min(layer, len(self._pictures) - 1)
        for start in range(0, heads, self.heads_at_once):
            some = slice(start, min(start + self.heads_at_once, heads))
            count = some.stop - some.start
            bias = self._buffer[: count * tokens * tokens].view(count, tokens, tokens)
            self._fill(bias, table, some)
            bias[:, :, self._patches + text :] = -torch.inf
            yield bias[None]

    def _fill(self, bias: Tensor, table: int, heads: slice) -> None:
        """Write all values of `bias`, (some heads, tokens, tokens), except the mask."""
        patches, tokens = self._patches, bias.shape[-1]
        text = min(self._longest, tokens - patches)
        bias[:, patches:, :patches] = 0
        bias[:, :, patches:] = 0
        self._pictures[table].write(bias, heads)
        bias[:, patches : patches + text, patches : patches + text] += self._texts[table][heads, :text, :text]
        if self._product is None:
            bias.baddbmm_(self._query[heads, :tokens], self._key[heads, :, :tokens])
        else:
            bias += self._product[heads, :tokens, :tokens]


class FullEncoderBias:
    """The biases of the encoder layers for a GPU, all computed once: 380 MB for the large model in bfloat16."""

    def __init__(
        self, product: Tensor, pictures: Iterable[Tensor], texts: Iterable[Tensor], patches: int, dtype: torch.dtype
    ) -> None:
        """Compute the biases.

        Args:
            product: (heads, tokens, tokens), of the projected positions; tokens = patches + longest text.
            pictures: (heads, patches, patches), of each layer, or one that all layers share.
            texts: (heads, longest text, longest text), likewise.
            patches: tokens of the picture.
            dtype: of the attention.
        """
        heads, tokens, _ = product.shape
        self._patches = patches
        size = self.count_tokens(tokens - patches)
        self._layers = []
        for picture, text in zip(pictures, texts, strict=True):
            bias = product.clone()
            bias[:, :patches, :patches] += picture
            bias[:, patches:, patches:] += text
            full = product.new_zeros(1, heads, size, size, dtype=dtype)
            full[0, :, :tokens, :tokens] = bias
            self._layers.append(full)

    def count_tokens(self, text: int) -> int:
        """Tokens of the encoder for a text of this length: patches, text and filler."""
        return round_up_gpu_tokens(self._patches + text)

    def compute(self, layer: int, text: int) -> Iterator[Tensor]:
        """Yield (1, heads, tokens, tokens) of a layer; the filler is not masked."""
        tokens = self.count_tokens(text)
        yield self._layers[min(layer, len(self._layers) - 1)][:, :, :tokens, :tokens]


class PictureGrid:
    """Row of a relative-position table for each pair of patches; shared by all tables."""

    def __init__(self, index: Tensor) -> None:
        """Prepare an index.

        One value is stored for each difference of rows and columns where the index allows it, and expanded strip by
        strip.

        Args:
            index: (patches, patches) integers, rows of a table; patches in reading order.
        """
        self.patches = len(index)
        self.side = side = round(self.patches**0.5)
        self.in_strips = depends_on_differences(index, side)
        if self.in_strips:
            index = compress_index(index, side)
        self.index = index.long()
        self.reversed_rows = torch.arange(side - 1, -1, -1, device=index.device)


class PictureDistances:
    """Relative-position values within the picture, for each head."""

    def __init__(self, table: Tensor, grid: PictureGrid, dtype: torch.dtype) -> None:
        """Look up the table's values.

        Args:
            table: (distances, heads).
            grid: rows of the table for pairs of patches.
            dtype: of the attention.
        """
        self.patches = grid.patches
        self._grid = grid
        # (heads, patches, patches), or (heads, 2 side − 1, 2 side − 1) by differences of rows and of columns.
        self._values = table.to(dtype)[grid.index].permute(2, 0, 1).contiguous()

    def write(self, bias: Tensor, heads: slice) -> None:
        """Write the patches' rows and columns of `bias`, (some heads, tokens, tokens)."""
        patches, side, reversed_rows = self.patches, self._grid.side, self._grid.reversed_rows
        values, square = self._values[heads], bias[:, :patches, :patches]
        if not self._grid.in_strips:
            square.copy_(values)
            return
        # One torch call for all heads: every call ends with a barrier of all threads.
        strips = torch.index_select(values.unfold(2, side, 1).transpose(1, 2), 1, reversed_rows).flatten(2)
        windows = strips.unfold(2, patches, side).transpose(1, 2)
        rows = square.unflatten(1, (side, side))
        torch.index_select(windows, 1, reversed_rows, out=rows)


def compress_index(index: Tensor, side: int) -> Tensor:
    """Reduce an index to the differences of positions: the key's row and column minus the query's.

    Args:
        index: (side², side²) integers.
        side: patches a side.

    Returns:
        (2 side - 1, 2 side - 1), for differences from 1 - side to side - 1. Differences up to 0 are read from the last
        patch of a row or column as query, the others from the first.
    """
    blocks = index.view(side, side, side, side)
    rows = torch.cat([blocks[-1, :, :, :].transpose(0, 1), blocks[0, :, 1:, :].transpose(0, 1)])
    return torch.cat([rows[:, -1, :], rows[:, 0, 1:]], dim=1)


def depends_on_differences(index: Tensor, side: int) -> bool:
    """Whether an index, (side², side²), depends only on the differences of rows and columns."""
    if side * side != len(index):
        return False
    blocks = index.view(side, side, side, side)
    down = torch.equal(blocks[1:, :, 1:], blocks[:-1, :, :-1])
    return down and torch.equal(blocks[:, 1:, :, 1:], blocks[:, :-1, :, :-1])


PREFIX = "positions."
BIAS_BUFFER_BYTES = 8 << 20  # of the encoder's buffer: about a CPU's cache


@dataclass(frozen=True, slots=True)
class PositionTables:
    """Stored tensors that the biases are computed from; always float32, whatever the model computes in.

    tokens = patches + text, text = the longest text, tables = layers, or 1 if layers share one.
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


def select_tables(tensors: Mapping[str, Tensor]) -> PositionTables:
    """Return the tables among a bundle's tensors.

    Raises:
        KeyError: one is missing.
    """
    return PositionTables(**{name: tensors[PREFIX + name] for name in PositionTables.__slots__})


class PositionBiases:
    """Biases of encoder, decoder and cross-attention for any text up to the longest. Device thread only."""

    def __init__(self, tables: PositionTables, config: EngineConfig, dtype: torch.dtype, *, is_full: bool) -> None:
        """Compute the biases on the tables' device.

        Args:
            tables: on the device.
            config: of the model.
            dtype: of the attention.
            is_full: keep the encoder's biases of all layers, as a GPU does.
        """
        self._patches = config.patches
        self.encoder: EncoderBias | FullEncoderBias
        self.encoder = _full_bias(tables, config, dtype) if is_full else _encoder_bias(tables, config, dtype)
        heads = config.decoder_heads
        absolute = _split_heads(tables.decoder_query, heads) @ _split_heads(tables.decoder_key, heads).transpose(1, 2)
        causal_mask = torch.full(absolute.shape[-2:], -torch.inf, device=absolute.device).triu(1)
        self._decoder = [
            (absolute + _look_up(table, tables.decoder_text_index) + causal_mask).to(dtype)[None]
            for table in tables.decoder_text
        ]
        cross = _split_heads(tables.cross_query, heads) @ _split_heads(tables.cross_key, heads).transpose(1, 2)
        self._cross = cross.to(dtype)[None]

    def decoder(self, layer: int, text: int) -> Tensor:
        """(1, heads, text, text) of a layer; later tokens are masked."""
        table = self._decoder[min(layer, len(self._decoder) - 1)]  # one table if all layers share it
        return table[:, :, :text, :text]

    def cross(self, text: int, source: int, tokens: int) -> Tensor:
        """(1, heads, text, tokens); encoder tokens after the source text are masked.

        Args:
            text: tokens of the decoder.
            source: tokens of the encoder's text.
            tokens: tokens of the encoder: patches, text and filler.
        """
        unmasked = self._patches + source
        bias = self._cross[:, :, :text, :unmasked]
        return bias if tokens == unmasked else pad(bias, (0, tokens - unmasked), value=-torch.inf)


def _encoder_bias(tables: PositionTables, config: EngineConfig, dtype: torch.dtype) -> EncoderBias:
    grid = PictureGrid(tables.encoder_image_index)
    return EncoderBias(
        _split_heads(tables.encoder_query, config.encoder_heads).to(dtype),
        _split_heads(tables.encoder_key, config.encoder_heads).transpose(1, 2).to(dtype),
        [PictureDistances(table, grid, dtype) for table in tables.encoder_image],
        [_look_up(table, tables.encoder_text_index).to(dtype) for table in tables.encoder_text],
        BIAS_BUFFER_BYTES,
    )


def _full_bias(tables: PositionTables, config: EngineConfig, dtype: torch.dtype) -> FullEncoderBias:
    query, key = (_split_heads(table, config.encoder_heads) for table in (tables.encoder_query, tables.encoder_key))
    return FullEncoderBias(
        query @ key.transpose(1, 2),
        (_look_up(table, tables.encoder_image_index) for table in tables.encoder_image),
        (_look_up(table, tables.encoder_text_index) for table in tables.encoder_text),
        config.patches,
        dtype,
    )


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(n, width) to (heads, n, width / heads)."""
    return x.view(len(x), heads, -1).transpose(0, 1)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """(distances, heads) and (n, n) to (heads, n, n)."""
    return table[index.long()].permute(2, 0, 1)
