"""Linear, LayerNorm, Conv2d and Embedding that never initialise their weights, since a bundle brings them.

Torch's own fill them with random numbers; on the meta device that imports torch's compiler, which
takes seconds and 200 MB and is used for nothing else here.
"""

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
