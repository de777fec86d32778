"""The stacks of encoder and decoder layers, each part normalised before and after."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from inference.runner.engines.ofa.attention import CrossAttention, FeedForward, SelfAttention
from inference.runner.engines.ofa.parts import LayerNorm


class EncoderLayer(nn.Module):
    """Look around, then think, each added to what was there."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Make the layer."""
        super().__init__()
        self.attention_norm = LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.attention_after = LayerNorm(width)
        self.feed_norm = LayerNorm(width)
        self.feed = FeedForward(width, hidden)

    def forward(self, x: Tensor, biases: Iterable[Tensor]) -> Tensor:
        """(rows, tokens, width) to the same; `biases` as in `SelfAttention`."""
        x = self.attention_after(self.attention(self.attention_norm(x), biases)).add_(x)
        result: Tensor = self.feed(self.feed_norm(x)).add_(x)
        return result


class DecoderLayer(nn.Module):
    """Look around, look at the encoder's tokens, then think, each added to what was there."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Make the layer."""
        super().__init__()
        self.attention_norm = LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.attention_after = LayerNorm(width)
        self.cross_norm = LayerNorm(width)
        self.cross = CrossAttention(width, heads)
        self.cross_after = LayerNorm(width)
        self.feed_norm = LayerNorm(width)
        self.feed = FeedForward(width, hidden)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor, cross_bias: Tensor) -> Tensor:
        """(rows, tokens, width) to the same; the rest as in `SelfAttention` and `CrossAttention`."""
        x = self.attention_after(self.attention(self.attention_norm(x), [bias])).add_(x)
        x = self.cross_after(self.cross(self.cross_norm(x), memory, cross_bias)).add_(x)
        result: Tensor = self.feed(self.feed_norm(x)).add_(x)
        return result


class Encoder(nn.Module):
    """All encoder layers."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        """Make the stack."""
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, biases: Callable[[int], Iterable[Tensor]]) -> Tensor:
        """(rows, tokens, width) to the same; each layer's biases as in `SelfAttention`."""
        for number, layer in enumerate(self.layers):
            x = layer(x, biases(number))
        result: Tensor = self.norm(x)
        return result


class Decoder(nn.Module):
    """All decoder layers."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        """Make the stack."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, biases: Callable[[int], Tensor], cross_bias: Tensor) -> Tensor:
        """(rows, tokens, width) to the same; one self-attention bias a layer, one cross bias for all."""
        for number, layer in enumerate(self.layers):
            x = layer(x, memory, biases(number), cross_bias)
        result: Tensor = self.norm(x)
        return result
