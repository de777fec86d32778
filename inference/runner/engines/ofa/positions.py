"""Attention biases from positions: they know nothing of the content, so they are made once and kept.

Tokens of the encoder stand in the order picture, text. A bias is the product of two learned
projections of absolute positions, the same in every layer, plus a learned number for the distance
within the picture and within the text, of each layer (or of all).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.runner.engines.ofa.config import EngineConfig

PREFIX = "positions."


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
    """The biases at the longest text, cut to the text at hand."""

    def __init__(self, tables: PositionTables, config: EngineConfig, dtype: torch.dtype) -> None:
        """Make all biases on the tables' device.

        Args:
            tables: on the device.
            config: of the model.
            dtype: that attention computes in.
        """
        self._patches = config.patches
        absolute = _products(tables.encoder_query, tables.encoder_key, config.encoder_heads)
        self._encoder = [
            _with_distances(absolute, tables, layer, config.patches).to(dtype) for layer in range(config.encoder_layers)
        ]
        absolute = _products(tables.decoder_query, tables.decoder_key, config.decoder_heads)
        hidden = torch.full(absolute.shape[-2:], -torch.inf, device=absolute.device).triu(1)
        self._decoder = [
            (absolute + _distances(tables.decoder_text, tables.decoder_text_index, layer) + hidden).to(dtype)
            for layer in range(config.decoder_layers)
        ]
        self._cross = _products(tables.cross_query, tables.cross_key, config.decoder_heads).to(dtype)

    def encoder(self, layer: int, text: int) -> Tensor:
        """(1, heads, tokens, tokens) of a text of `text` tokens, tokens = patches + text."""
        tokens = self._patches + text
        return self._encoder[layer][:, :, :tokens, :tokens]

    def decoder(self, text: int) -> list[Tensor]:
        """(1, heads, text, text) of each layer; later tokens are hidden."""
        return [bias[:, :, :text, :text] for bias in self._decoder]

    def cross(self, text: int, source: int) -> Tensor:
        """(1, heads, text, patches + source): `text` tokens of the decoder, `source` of the encoder's text."""
        return self._cross[:, :, :text, : self._patches + source]


def _products(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(n, width) and (m, width) to (1, heads, n, m)."""
    size = query.shape[1] // heads
    split_query = query.view(-1, heads, size).transpose(0, 1)
    split_key = key.view(-1, heads, size).permute(1, 2, 0)
    return (split_query @ split_key).unsqueeze(0)


def _distances(tables: Tensor, index: Tensor, layer: int) -> Tensor:
    """(tables, distances, heads) and (n, n) to (1, heads, n, n)."""
    table = tables[min(layer, tables.shape[0] - 1)]  # one table serves all layers if they share it
    return table[index.long()].permute(2, 0, 1).unsqueeze(0)


def _with_distances(absolute: Tensor, tables: PositionTables, layer: int, patches: int) -> Tensor:
    """Add to (1, heads, tokens, tokens) what distances within the picture and within the text mean."""
    bias = absolute.clone()
    bias[:, :, :patches, :patches] += _distances(tables.encoder_image, tables.encoder_image_index, layer)
    bias[:, :, patches:, patches:] += _distances(tables.encoder_text, tables.encoder_text_index, layer)
    return bias
