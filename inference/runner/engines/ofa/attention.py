"""Attention with a learned bias instead of positions in the content, and the feed-forward part."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from inference.runner.engines.ofa.parts import LayerNorm, Linear


class SelfAttention(nn.Module):
    """Every token looks at every token of its own row."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layer; the query's scale and the heads' scales are folded into the weights."""
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, biases: Iterable[Tensor]) -> Tensor:
        """Look around.

        Args:
            x: (rows, tokens, width).
            biases: (1 or rows, some heads, tokens, tokens) each, together of all heads in order; added to the
                scores, −inf hides a token.

        Returns:
            (rows, tokens, width).
        """
        rows, tokens, width = x.shape
        split = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        parts, start = [], 0
        for bias in biases:
            some = slice(start, start + bias.shape[1])
            mixed = F.scaled_dot_product_attention(
                query[:, some], key[:, some], value[:, some], attn_mask=bias, scale=1.0
            )
            parts.append(mixed.transpose(1, 2))
            start = some.stop
        result: Tensor = self.out(torch.cat(parts, dim=2).view(rows, tokens, width))
        return result


class CrossAttention(nn.Module):
    """Every token of the decoder looks at every token of the encoder.

    There are few questions and many tokens to remember, so the questions are brought to the memory:
    (q Wk) · m is q · (Wk m) at a fraction of the work, and what is found is brought back by Wv. The
    key's bias adds the same to all scores of a question, which the softmax takes out again.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Make the layer; the query's scale and the heads' scales are folded into the weights."""
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """Look at the encoder's tokens.

        Args:
            x: (rows, tokens, width).
            memory: (rows, remembered, width), what the encoder made.
            bias: (1 or rows, heads, tokens, remembered), added to the scores; −inf hides a token.

        Returns:
            (rows, tokens, width).
        """
        rows, tokens, width = x.shape
        size, remembered = width // self.heads, memory.shape[1]
        key, value = self.key_value.weight.view(2, self.heads, size, width).unbind(0)
        query = self.query(x).view(rows, tokens, self.heads, size).transpose(1, 2)
        questions = (query @ key).view(rows, 1, self.heads * tokens, width)
        mask = bias.reshape(-1, 1, self.heads * tokens, remembered)
        seen = memory[:, None]
        found = F.scaled_dot_product_attention(questions, seen, seen, attn_mask=mask, scale=1.0)
        mixed = found.view(rows, self.heads, tokens, width) @ value.transpose(1, 2)
        mixed = mixed.transpose(1, 2).reshape(rows, tokens, width) + self.key_value.bias[width:]
        result: Tensor = self.out(mixed)
        return result


class FeedForward(nn.Module):
    """Each token by itself: widen, bend, normalise, narrow."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make the layer."""
        super().__init__()
        self.widen = Linear(width, hidden)
        self.norm = LayerNorm(hidden)
        self.narrow = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, tokens, width) to the same."""
        # Bent in its own memory: these are the largest numbers of a call.
        result: Tensor = self.narrow(self.norm(torch.ops.aten.gelu_(self.widen(x))))
        return result
