"""The picture's ResNet: bottlenecks, no last stage, its batch norms folded into the convolutions."""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from inference.runner.engines.ofa.layers import Convolution

FEATURES = 1024  # channels of the last stage
_STEM = 64
_EXPANSION = 4
_STAGE_WIDTHS = (64, 128, 256)


class Bottleneck(nn.Module):
    """Narrow, look around, widen, and add to what came in."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Make a block.

        Args:
            channels: that come in.
            width: of the narrow part; four times that comes out.
            stride: 2 halves both sides.
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
        y = self.conv2.bent(self.conv1.bent(x))
        return self.conv3.added_and_bent(y, self.shortcut(x))

    def arrange(self, rows: int) -> int:
        """As `Convolution.arrange`."""
        if isinstance(self.shortcut, Convolution):
            self.shortcut.arrange(rows)
        return self.conv3.arrange(self.conv2.arrange(self.conv1.arrange(rows)))


class ResNet(nn.Module):
    """Pixels to one feature vector for each patch of 16 × 16."""

    def __init__(self, blocks: tuple[int, int, int]) -> None:
        """Make the network.

        Args:
            blocks: bottlenecks of each of the three stages.
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
        """Look at pictures.

        Args:
            pixels: (pictures, 3, size, size), normalised, channels last in memory.

        Returns:
            (pictures, patches, 1024), patches in reading order.
        """
        x = F.max_pool2d(self.stem.bent(pixels), 3, 2, padding=1)
        features: Tensor = self.blocks(x)
        return features.flatten(2).transpose(1, 2)

    def arrange(self, rows: int) -> None:
        """Bring all weights into the order that kernels want, for pictures of so many rows and columns."""
        rows = (self.stem.arrange(rows) + 1) // 2
        for block in self.blocks:
            rows = block.arrange(rows)  # type: ignore[operator]  # a Bottleneck
