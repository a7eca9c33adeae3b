"""ResNets for small images (He et al., Deep residual learning, CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.schema import UserError

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; the shortcut has no parameters (the paper's option A).

    ``groups`` are those of the first and the second.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, groups: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = groups
        self.conv1 = nn.Conv2d(
            channels_in, channels, 3, stride, padding=1, groups=first, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, channels_in, H, W]`` to ``[B, channels, H / stride, W / stride]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.added:
            return x
        # Every second pixel; new channels are zero, half of them before the old ones.
        before = self.added // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.added - before))


class CifarResNet(nn.Module):
    """Stem, three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels, global average."""

    features = WIDTHS[-1]

    def __init__(self, depth: int, channels: int = 3) -> None:
        """Build for images with ``channels``.

        Raises:
            UserError: if ``depth`` is not 6 n + 2.
        """
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise UserError(f"depth must be 6 n + 2 (8, 20, 32, 44, 56), but got {depth}")
        self.stem = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        self.stage1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.stage2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.stage3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @property
    def layers(self) -> list[list[nn.Module]]:
        """Return the stem and each block."""
        blocks = (*self.stage1, *self.stage2, *self.stage3)
        return [[self.stem, self.bn], *([block] for block in blocks)]

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, channels, H, W]`` to features ``[B, 64]``."""
        x = F.relu(self.bn(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return torch.mean(x, dim=(2, 3))


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
