"""Encodes pictures: ResNet (https://arxiv.org/abs/1512.03385) without its last stage, projection and norm.

Batch norms are folded into the convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's conventional alias

from inference.runner.engines.linear import Linear
from inference.runner.engines.ofa.config import EngineConfig
from inference.runner.engines.ofa.layers import Convolution, LayerNorm

FEATURES = 1024  # channels of the last stage
_STEM = 64
_EXPANSION = 4
_STAGE_WIDTHS = (64, 128, 256)


class Bottleneck(nn.Module):
    """Residual block of 1 × 1, 3 × 3 and 1 × 1 convolutions."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Create a block.

        Args:
            channels: input channels.
            width: channels of the 3 × 3 convolution; the output has four times as many.
            stride: of the 3 × 3 convolution; 2 halves both sides.
        """
        super().__init__()
        out = width * _EXPANSION
        self.conv1 = Convolution(channels, width, 1)
        self.conv2 = Convolution(width, width, 3, stride)
        self.conv3 = Convolution(width, out, 1)
        reshapes = stride != 1 or channels != out
        self.shortcut = Convolution(channels, out, 1, stride) if reshapes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, channels, rows, columns) to (pictures, 4 × width, rows / stride, columns / stride)."""
        y = self.conv2.forward_relu(self.conv1.forward_relu(x))
        return self.conv3.forward_add_relu(y, self.shortcut(x))

    def reorder_weights(self, rows: int) -> int:
        """Apply `Convolution.reorder_weight` to all convolutions of the block."""
        if isinstance(self.shortcut, Convolution):
            self.shortcut.reorder_weight(rows)
        return self.conv3.reorder_weight(self.conv2.reorder_weight(self.conv1.reorder_weight(rows)))


class ResNet(nn.Module):
    """Pixels to one feature vector for each patch of 16 × 16 pixels."""

    def __init__(self, blocks: tuple[int, int, int]) -> None:
        """Create the network.

        Args:
            blocks: number of bottlenecks in each of the three stages.
        """
        super().__init__()
        self.stem = Convolution(3, _STEM, 7, 2)
        stages, channels = [], _STEM
        for stage, (width, count) in enumerate(zip(_STAGE_WIDTHS, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                stages.append(Bottleneck(channels, width, stride))
                channels = width * _EXPANSION
        self.blocks = nn.Sequential(*stages)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute patch features.

        Args:
            pixels: (pictures, 3, size, size), normalised, channels last in memory.

        Returns:
            (pictures, patches, 1024), patches in reading order.
        """
        x = F.max_pool2d(self.stem.forward_relu(pixels), 3, 2, padding=1)
        features: Tensor = self.blocks(x)
        return features.flatten(2).transpose(1, 2)

    def reorder_weights(self, rows: int) -> None:
        """Apply `Convolution.reorder_weight` to all convolutions, for pictures of `rows` × `rows` pixels."""
        rows = (self.stem.reorder_weight(rows) + 1) // 2
        for block in self.blocks:
            rows = block.reorder_weights(rows)  # type: ignore[operator]  # a Bottleneck


class ImageEncoder(nn.Module):
    """Pictures to patch features, which depend on nothing else and can be reused between calls."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.resnet = ResNet(config.resnet_blocks)
        self.project = Linear(FEATURES, config.width)
        self.norm = LayerNorm(config.width)
        self.mean = config.image_mean
        self.deviation = config.image_deviation
        self._moments: Tensor | None = None  # (2, channels) on the device: a copy from the host ends a capture

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute patch features.

        Args:
            pixels: (pictures, size, size, 3) uint8, RGB.

        Returns:
            (pictures, patches, width).
        """
        if self._moments is None:
            self._moments = torch.tensor((self.mean, self.deviation), device=pixels.device)
        scaled = pixels.to(torch.float32).div_(255).sub_(self._moments[0]).div_(self._moments[1])
        # The permuted view is (pictures, 3, size, size) in channels-last memory, the fastest layout for convolutions.
        features = self.resnet(scaled.to(self.project.weight.dtype).permute(0, 3, 1, 2))
        result: Tensor = self.norm(self.project(features))
        return result
