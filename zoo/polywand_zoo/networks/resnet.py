"""Residual stages (He et al. 2016), in the variants that the published networks are built of."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.networks.layers import ConvNorm, conv

EXPANSION = 4  # a bottleneck's channels out, relative to its width


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, added to what was there, optionally projected by a 1x1 convolution."""

    def __init__(
        self,
        channels_in: int,
        width: int,
        channels: int,
        *,
        stride: int = 1,
        stride_first: bool = False,
        dilation: int = 1,
        project: bool = True,
    ) -> None:
        """stride_first: the first 1x1 convolution strides, as in the paper, and not the 3x3, as in later code."""
        super().__init__()
        strides = (stride, 1) if stride_first else (1, stride)
        self.conv1 = conv(channels_in, width, 1, stride=strides[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=strides[1], dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = ConvNorm(channels_in, channels, stride=stride, activation=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels, H / stride, W / stride]."""
        computed = functional.relu(self.bn1(self.conv1(x)))
        computed = functional.relu(self.bn2(self.conv2(computed)))
        computed = self.bn3(self.conv3(computed))
        return functional.relu(computed + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to what was there, which a 1x1 convolution projects where shapes differ."""

    def __init__(
        self, channels_in: int, channels: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.conv1 = conv(channels_in, channels, 3, stride=stride, dilation=dilations[0])
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, dilation=dilations[1])
        self.bn2 = nn.BatchNorm2d(channels)
        project = stride != 1 or channels_in != channels
        self.downsample = ConvNorm(channels_in, channels, stride=stride, activation=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels, H / stride, W / stride]."""
        computed = functional.relu(self.bn1(self.conv1(x)))
        computed = self.bn2(self.conv2(computed))
        return functional.relu(computed + (x if self.downsample is None else self.downsample(x)))


def bottleneck_stage(
    channels_in: int, width: int, dilations: Sequence[int], *, stride: int = 1, stride_first: bool = False
) -> nn.Sequential:
    """Make a stage of bottlenecks, one per dilation, with `EXPANSION` x width channels; the first one strides."""
    channels = width * EXPANSION
    first = Bottleneck(channels_in, width, channels, stride=stride, stride_first=stride_first, dilation=dilations[0])
    others = (Bottleneck(channels, width, channels, dilation=dilation, project=False) for dilation in dilations[1:])
    return nn.Sequential(first, *others)


def basic_stage(channels_in: int, channels: int, blocks: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Make a stage of basic blocks; the first one strides, and its first convolution has the stage before's dilation.

    A dilated stage stands for one that strides by two, so the stage before has half of its dilation.
    """
    before = max(1, dilation // 2)
    first = BasicBlock(channels_in, channels, stride=stride, dilations=(before, dilation))
    others = (BasicBlock(channels, channels, dilations=(dilation, dilation)) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)
