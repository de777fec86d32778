"""Linear, LayerNorm, Conv2d and Embedding that never initialise their weights, since a bundle brings them.

Torch's own fill them with random numbers; on the meta device that imports torch's compiler, which
takes seconds and 200 MB and is used for nothing else here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows


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
    """A square convolution with zeros around the picture, such that only the stride shrinks it."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        """Make the layer without numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride = stride
        self.padding = side // 2

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, inputs, rows, columns) to (pictures, outputs, rows / stride, columns / stride)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Embedding(nn.Module):
    """A row of numbers for each token."""

    def __init__(self, tokens: int, width: int) -> None:
        """Make the table without numbers."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) int64 to (…, width)."""
        return F.embedding(tokens, self.weight)
