"""Attention biases from positions: they know nothing of the content.

Tokens of the encoder stand in the order picture, text. A bias is the product of two learned
projections of absolute positions, the same in every layer, plus a learned number for the distance
within the picture and within the text, of each layer (or of all).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from inference.runner.engines.ofa.config import EngineConfig
from inference.runner.engines.ofa.encoder_bias import EncoderBias, PictureDistances, PictureGrid

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
