"""The MGeo network for address tagging: a BERT encoder and a classifier of tokens.

Architecture after Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805), with MGeo's weights
(https://arxiv.org/abs/2301.04283). Rows of different lengths are packed: all layers but the attention see one matrix
of all tokens of a call, without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.linear import ACTIVATIONS, Linear
from inference.runner.engines.mgeo.config import EngineConfig


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Consecutive rows of a call that attention takes at once."""

    rows: int
    tokens: int  # of each row; shorter rows are padded in the attention alone
    mask: Tensor | None = None  # (rows, 1, 1, tokens) of True for a token; None if no row is shorter
    places: Tensor | None = None  # (all tokens of the group,) in the padded rows; None if no row is shorter


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The tokens of all rows of a call, one row after the other, in the order of the groups."""

    ids: Tensor  # (tokens,) int64
    positions: Tensor  # (tokens,) int64, of each token in its row
    groups: Sequence[RowGroup]


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (https://arxiv.org/abs/1607.06450)."""

    def __init__(self, width: int, epsilon: float) -> None:
        """Create the layer with uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, width) to (tokens, width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each row."""

    def __init__(self, width: int, heads: int) -> None:
        """Create the layer; the weights include the scale of the scores."""
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, groups: Sequence[RowGroup]) -> Tensor:
        """(tokens, width) to (tokens, width); adds the residual."""
        tokens, width = x.shape
        qkv = self.qkv(x)
        mixed = x.new_empty(tokens, width)
        start = 0
        for group in groups:
            size = group.rows * group.tokens if group.places is None else len(group.places)
            _attend(qkv[start : start + size], mixed[start : start + size], group, self.heads)
            start += size
        return self.out.forward_add(mixed, x)


def _attend(qkv: Tensor, mixed: Tensor, group: RowGroup, heads: int) -> None:
    """Write the attention of one group: (tokens, 3 · width) to (tokens, width)."""
    width = mixed.shape[1]
    if group.places is not None:
        padded = qkv.new_zeros(group.rows * group.tokens, 3 * width)
        padded[group.places] = qkv
        qkv = padded
    split = qkv.view(group.rows, group.tokens, 3, heads, width // heads)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask, scale=1.0).transpose(1, 2)
    if group.places is None:
        mixed.view(group.rows, group.tokens, heads, width // heads).copy_(found)
    else:
        torch.index_select(found.reshape(-1, width), 0, group.places, out=mixed)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a norm after it."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.attention_norm = LayerNorm(config.width, config.norm_epsilon)
        self.widen = Linear(config.width, config.ffn)
        self.narrow = Linear(config.ffn, config.width)
        self.feed_norm = LayerNorm(config.width, config.norm_epsilon)
        if config.activation not in ACTIVATIONS:
            raise ValueError(f"activation {config.activation[:80]!r} is unknown")
        self._activation = config.activation

    def forward(self, x: Tensor, groups: Sequence[RowGroup]) -> Tensor:
        """(tokens, width) to (tokens, width)."""
        x = self.attention_norm(self.attention(x, groups))
        result: Tensor = self.feed_norm(self.narrow.forward_add(self.widen.forward_activated(x, self._activation), x))
        return result


class MgeoModel(nn.Module):
    """Token ids to labels and their probabilities."""

    def __init__(self, config: EngineConfig) -> None:
        """Create the modules; `load_state_dict` supplies the weights."""
        super().__init__()
        self.token_embedding = nn.Parameter(torch.empty(config.vocabulary, config.width))
        # Of the positions that a window has; includes the embedding of the first segment, which every token has.
        self.position_embedding = nn.Parameter(torch.empty(config.window, config.width))
        self.embedding_norm = LayerNorm(config.width, config.norm_epsilon)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.classifier = Linear(config.width, len(config.labels))

    def forward(self, rows: PackedRows, scored: Tensor) -> tuple[Tensor, Tensor]:
        """Label some tokens.

        Args:
            rows: of the call.
            scored: (words,) int64, the tokens to label.

        Returns:
            (words,) float32, the probability of the most probable label; (words,) int64, its number.
        """
        x = F.embedding(rows.ids, self.token_embedding) + F.embedding(rows.positions, self.position_embedding)
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, rows.groups)
        # Always float32: the cost is negligible, and a score rounded to bfloat16's 8 bits is off by up to 1 %.
        probabilities, labels = torch.softmax(self.classifier(x[scored]).to(torch.float32), dim=-1).max(dim=-1)
        return probabilities, labels
