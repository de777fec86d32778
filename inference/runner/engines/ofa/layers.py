"""Encoder and decoder layers of OFA: transformer layers with norms before and after each sublayer.

The norms are those of NormFormer (https://arxiv.org/abs/2110.09456).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.linear import Linear
from inference.runner.engines.ofa.attention import CrossAttention, SelfAttention

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


class Embedding(nn.Module):
    """Looks up one vector for each token."""

    def __init__(self, tokens: int, width: int) -> None:
        """Create the table with uninitialised weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) int64 to (…, width)."""
        return F.embedding(tokens, self.weight)


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
