"""Encoder and decoder layers of OFA: transformer layers with norms before and after each sublayer.

The norms are those of NormFormer (https://arxiv.org/abs/2110.09456).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.linear import Linear

_ONEDNN = torch.ops.mkldnn


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (https://arxiv.org/abs/1607.06450)."""

    def __init__(self, width: int) -> None:
        """Create the layer with uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to (…, width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Convolution(nn.Module):
    """A square convolution, zero-padded such that only the stride shrinks the picture.

    The following sum and ReLU run fused with it: on a CPU by oneDNN's fused convolutions where this build of torch has
    them, on a GPU in bfloat16 by cuDNN's.
    """

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        """Create the layer with uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride = stride
        self.padding = side // 2

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, inputs, rows, columns) to (pictures, outputs, rows / stride, columns / stride)."""
        if _supports_fusion(x):
            return self._convolve_fused(x, "none")
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def forward_relu(self, x: Tensor) -> Tensor:
        """As `forward`, followed by a ReLU."""
        if _supports_fusion(x):
            return self._convolve_fused(x, "relu")
        if _supports_gpu_fusion(x):
            padding, stride, dilation, groups = self._geometry()
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, stride, padding, dilation, groups)
        return F.relu(self(x), inplace=True)

    def forward_add_relu(self, x: Tensor, other: Tensor) -> Tensor:
        """As `forward`; adds `other`, of the result's shape, then applies a ReLU."""
        if _supports_gpu_fusion(x):
            padding, stride, dilation, groups = self._geometry()
            return torch.cudnn_convolution_add_relu(
                x, self.weight, other, 1.0, self.bias, stride, padding, dilation, groups
            )
        if not _supports_fusion(x):
            return F.relu(self(x).add_(other), inplace=True)
        result: Tensor = _ONEDNN._convolution_pointwise.binary(  # noqa: SLF001  no public name
            x, other, self.weight, self.bias, *self._geometry(), "add", 1.0, "relu", [], ""
        )
        return result

    def reorder_weight(self, rows: int) -> int:
        """Store the weight in the blocked layout of the CPU's kernel, for inputs of `rows` × `rows`.

        Saves the reordering in every call at the price of one copy; only bfloat16 gets faster by it.

        Returns:
            Rows of the output.
        """
        _, inputs, side, _ = self.weight.shape
        if _supports_fusion(self.weight) and self.weight.dtype == torch.bfloat16:
            shape = [1, inputs, rows, rows]
            reordered = _ONEDNN._reorder_convolution_weight(self.weight, *self._geometry(), shape)  # noqa: SLF001
            self.weight = nn.Parameter(reordered, requires_grad=False)
        return (rows + 2 * self.padding - side) // self.stride + 1

    def _convolve_fused(self, x: Tensor, activation: str) -> Tensor:
        result: Tensor = _ONEDNN._convolution_pointwise(  # noqa: SLF001  no public name
            x, self.weight, self.bias, *self._geometry(), activation, [], ""
        )
        return result

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation and groups, in the order of oneDNN's arguments."""
        return [self.padding] * 2, [self.stride] * 2, [1, 1], 1


def _supports_fusion(x: Tensor) -> bool:
    """Whether oneDNN's fused convolutions, which torch does not export publicly, support this device and dtype."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(_ONEDNN, "_convolution_pointwise") or not hasattr(_ONEDNN, "_reorder_convolution_weight"):
        return False
    return x.dtype == torch.float32 or bool(_ONEDNN._is_mkldnn_bf16_supported())  # noqa: SLF001


def _supports_gpu_fusion(x: Tensor) -> bool:
    """Whether cuDNN fuses convolutions on this device and dtype."""
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.backends.cudnn.is_available()


_MASKED = -30_000.0  # added to a score: its weight is 0, and no intermediate result is infinite
_MASK_COORDINATES = 8  # fused attention takes sizes of heads that are multiples of 8


def make_key_mask(lengths: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """Make further coordinates of keys that mask the tokens after each row's length.

    Rows then share one bias although their lengths differ: a bias of each row is 29 MB a layer for the large model.

    Args:
        lengths: (rows,) tokens of each row that are not masked.
        tokens: number of keys.
        dtype: of the attention.

    Returns:
        (rows, 1, tokens, coordinates): the queries' further coordinates are ones, so that the sum is added to a score.
    """
    is_masked = torch.arange(tokens, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros(len(lengths), 1, tokens, _MASK_COORDINATES, dtype=dtype, device=lengths.device)
    mask[:, 0, :, 0].masked_fill_(is_masked, _MASKED)
    return mask


class Embedding(nn.Module):
    """Looks up one vector for each token."""

    def __init__(self, tokens: int, width: int) -> None:
        """Create the table with uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) int64 to (…, width)."""
        return F.embedding(tokens, self.weight)


class SelfAttention(nn.Module):
    """Multi-head self-attention with an additive bias."""

    def __init__(self, width: int, heads: int) -> None:
        """Create the layer; weights include the query's scale and the heads' scales."""
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, biases: Iterable[Tensor], key_mask: Tensor | None = None) -> Tensor:
        """Apply self-attention.

        Args:
            x: (rows, tokens, width).
            biases: tensors of (1 or rows, some heads, tokens, tokens) that cover all heads in order; added to the
                scores, -inf masks a token.
            key_mask: of `make_key_mask`.

        Returns:
            (rows, tokens, width).
        """
        rows, tokens, width = x.shape
        split = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        if key_mask is not None:
            ones = query.new_ones(1, 1, 1, _MASK_COORDINATES).expand(rows, self.heads, tokens, -1)
            query = torch.cat([query, ones], -1)
            key = torch.cat([key, key_mask.expand(-1, self.heads, -1, -1)], -1)
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
    """Multi-head attention from the decoder's tokens to the encoder's output.

    The decoder has few queries and the encoder many tokens, so on a CPU keys and values are never computed: the key
    projection is applied to the queries ((q Wk) · m equals q · (Wk m)) and the value projection to the attended memory.
    The key's bias is left out because it adds the same number to all scores of a query, which the softmax cancels. On a
    GPU the usual order is faster, because fused attention supports only small heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Create the layer; weights include the query's scale and the heads' scales."""
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """Apply cross-attention.

        Args:
            x: (rows, tokens, width).
            memory: (rows, source, width), output of the encoder.
            bias: (1 or rows, heads, tokens, source), added to the scores; -inf masks a token.

        Returns:
            (rows, tokens, width).
        """
        return self.attend(x, memory, bias) if x.is_cuda else self.attend_folded(x, memory, bias)

    def attend(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """As `forward`: projects the memory to keys and values."""
        rows, tokens, width = x.shape
        query = self.query(x).view(rows, tokens, self.heads, -1).transpose(1, 2)
        split = self.key_value(memory).view(rows, memory.shape[1], 2, self.heads, -1)
        key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        result: Tensor = self.out(attended.transpose(1, 2).reshape(rows, tokens, width))
        return result

    def attend_folded(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """As `forward`: applies the projections of the memory to the queries and to the attended memory."""
        rows, tokens, width = x.shape
        size, source = width // self.heads, memory.shape[1]
        key, value = self.key_value.weight.view(2, self.heads, size, width).unbind(0)
        query = self.query(x).view(rows, tokens, self.heads, size).transpose(1, 2)
        queries = (query @ key).view(rows, 1, self.heads * tokens, width)
        mask = bias.reshape(-1, 1, self.heads * tokens, source)
        shared = memory[:, None]
        attended = F.scaled_dot_product_attention(queries, shared, shared, attn_mask=mask, scale=1.0)
        mixed = attended.view(rows, self.heads, tokens, width) @ value.transpose(1, 2)
        mixed = mixed.transpose(1, 2).reshape(rows, tokens, width) + self.key_value.bias[width:]
        result: Tensor = self.out(mixed)
        return result


class FeedForward(nn.Module):
    """Feed-forward sublayer: linear, GELU, layer norm, linear; adds the residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.widen = Linear(width, hidden)
        self.norm = LayerNorm(hidden)
        self.narrow = Linear(hidden, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Twice (rows, tokens, width) to (rows, tokens, width)."""
        return self.narrow.forward_add(self.norm(self.widen.forward_activated(x, "gelu")), residual)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.attention_after = LayerNorm(width)
        self.feed_norm = LayerNorm(width)
        self.feed = FeedForward(width, hidden)

    def forward(self, x: Tensor, biases: Iterable[Tensor], key_mask: Tensor | None = None) -> Tensor:
        """(rows, tokens, width) to (rows, tokens, width); `biases` and `key_mask` as in `SelfAttention`."""
        x = self.attention_after(self.attention(self.attention_norm(x), biases, key_mask)).add_(x)
        result: Tensor = self.feed(self.feed_norm(x), x)
        return result


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
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
        """(rows, tokens, width) to (rows, tokens, width); the rest as in `SelfAttention` and `CrossAttention`."""
        x = self.attention_after(self.attention(self.attention_norm(x), [bias])).add_(x)
        x = self.cross_after(self.cross(self.cross_norm(x), memory, cross_bias)).add_(x)
        result: Tensor = self.feed(self.feed_norm(x), x)
        return result


class Encoder(nn.Module):
    """Stack of encoder layers with a final norm."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, biases: Callable[[int], Iterable[Tensor]], key_mask: Tensor | None = None) -> Tensor:
        """(rows, tokens, width) to (rows, tokens, width); `biases` of a layer number as in `SelfAttention`."""
        for number, layer in enumerate(self.layers):
            x = layer(x, biases(number), key_mask)
        result: Tensor = self.norm(x)
        return result


class Decoder(nn.Module):
    """Stack of decoder layers with a final norm."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, biases: Callable[[int], Tensor], cross_bias: Tensor) -> Tensor:
        """(rows, tokens, width) to (rows, tokens, width); a self-attention bias a layer, one cross bias for all."""
        for number, layer in enumerate(self.layers):
            x = layer(x, memory, biases(number), cross_bias)
        result: Tensor = self.norm(x)
        return result
