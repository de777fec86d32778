"""The stacks of encoder and decoder layers, each part normalised before and after."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

_ONEDNN = torch.ops.mkldnn


class Linear(nn.Module):
    """y = x Wᵀ + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make the layer without numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Each token to mean 0 and deviation 1, then scaled and shifted."""

    def __init__(self, width: int) -> None:
        """Make the layer without numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Convolution(nn.Module):
    """A square convolution with zeros around the picture, such that only the stride shrinks it.

    On a CPU what follows it (a sum, a bend) is done while its numbers are still in the cache, by
    oneDNN's fused convolutions where this build of torch has them.
    """

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        """Make the layer without numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride = stride
        self.padding = side // 2

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, inputs, rows, columns) to (pictures, outputs, rows / stride, columns / stride)."""
        if _is_fused(x):
            return self._fused(x, "none")
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def bent(self, x: Tensor) -> Tensor:
        """The same with everything below 0 cut off."""
        if _is_fused(x):
            return self._fused(x, "relu")
        return F.relu(self(x), inplace=True)

    def added_and_bent(self, x: Tensor, other: Tensor) -> Tensor:
        """The same with `other`, of the result's shape, added before the cut."""
        if not _is_fused(x):
            return F.relu(self(x).add_(other), inplace=True)
        result: Tensor = _ONEDNN._convolution_pointwise.binary(  # noqa: SLF001  no public name
            x, other, self.weight, self.bias, *self._places(), "add", 1.0, "relu", [], ""
        )
        return result

    def arrange(self, rows: int) -> int:
        """Bring the weight into the order that the CPU's kernel wants, for pictures of so many rows and columns.

        It saves every call that work, and costs a copy: only bfloat16 gains by it.

        Returns:
            Rows of the result.
        """
        _, inputs, side, _ = self.weight.shape
        if _is_fused(self.weight) and self.weight.dtype == torch.bfloat16:
            shape = [1, inputs, rows, rows]
            arranged = _ONEDNN._reorder_convolution_weight(self.weight, *self._places(), shape)  # noqa: SLF001
            self.weight = nn.Parameter(arranged, requires_grad=False)
        return (rows + 2 * self.padding - side) // self.stride + 1

    def _fused(self, x: Tensor, after: str) -> Tensor:
        result: Tensor = _ONEDNN._convolution_pointwise(  # noqa: SLF001  no public name
            x, self.weight, self.bias, *self._places(), after, [], ""
        )
        return result

    def _places(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation and groups, as oneDNN has them."""
        return [self.padding] * 2, [self.stride] * 2, [1, 1], 1


def _is_fused(x: Tensor) -> bool:
    """Whether oneDNN's fused convolutions take such numbers here; they are no public part of torch."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(_ONEDNN, "_convolution_pointwise") or not hasattr(_ONEDNN, "_reorder_convolution_weight"):
        return False
    return x.dtype == torch.float32 or bool(_ONEDNN._is_mkldnn_bf16_supported())  # noqa: SLF001


class Embedding(nn.Module):
    """A row of numbers for each token."""

    def __init__(self, tokens: int, width: int) -> None:
        """Make the table without numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) int64 to (…, width)."""
        return F.embedding(tokens, self.weight)


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
