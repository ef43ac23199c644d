"""DeepLabV3+ (Chen et al. 2018) as f-BRS uses it: a dilated ResNet, atrous spatial pyramid pooling, a light decoder.

The ResNets are those of the f-BRS authors: 34 layers as in the paper of ResNets, 50 and 101 layers with a stem of three
3x3 convolutions; the last two stages are dilated instead of striding.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.networks.layers import ConvNorm, SeparableConv, conv, resize, size_of
from polywand_zoo.networks.resnet import basic_stage, bottleneck_stage

Layers = Literal[34, 50, 101]
SKIP_CHANNELS = 32  # of what the decoder sees of the first stage


class DeepLab(nn.Module):
    """The network without its last layers, which f-BRS counts as a head of their own.

    channels: of the pyramid's output and of the decoder.
    """

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.backbone: ShallowBackbone | DeepBackbone = ShallowBackbone() if layers == 34 else DeepBackbone(layers)
        self.head = DecoderHead(channels + SKIP_CHANNELS, channels)
        self.skip_project = SkipProjection(self.backbone.FIRST_CHANNELS)
        self.aspp = AtrousPyramid(self.backbone.LAST_CHANNELS, channels)

    def encode(self, x: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, channels + 32, H / 4, W / 4]: the pyramid's output, and the first stage's."""
        first, last = self.backbone(x)
        skip = self.skip_project(first)
        return torch.cat([resize(self.aspp(last), size_of(skip)), skip], 1)


class ShallowBackbone(nn.Module):
    """ResNet-34."""

    FIRST_CHANNELS, LAST_CHANNELS = 64, 512

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = basic_stage(64, 64, 3)
        self.layer2 = basic_stage(64, 128, 4, stride=2)
        self.layer3 = basic_stage(128, 256, 6, dilation=2)
        self.layer4 = basic_stage(256, 512, 3, dilation=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, 3, H, W] to the first stage's features at stride 4 and the last one's at stride 8."""
        x = functional.relu(self.bn1(self.conv1(x)))
        first = self.layer1(functional.max_pool2d(x, 3, stride=2, padding=1))
        return first, self.layer4(self.layer3(self.layer2(first)))


class DeepBackbone(nn.Module):
    """ResNet-50 or -101 with a deep stem."""

    FIRST_CHANNELS, LAST_CHANNELS = 256, 2048

    def __init__(self, layers: Literal[50, 101]) -> None:
        super().__init__()
        blocks = {50: 6, 101: 23}[layers]
        self.conv1 = nn.Sequential(*ConvNorm(3, 64, 3, stride=2), *ConvNorm(64, 64, 3), conv(64, 128, 3))
        self.bn1 = nn.BatchNorm2d(128)
        self.layer1 = bottleneck_stage(128, 64, [1] * 3)
        self.layer2 = bottleneck_stage(256, 128, [1] * 4, stride=2)
        self.layer3 = bottleneck_stage(512, 256, [1] + [2] * (blocks - 1))
        self.layer4 = bottleneck_stage(1024, 512, [2] + [4] * 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, 3, H, W] to the first stage's features at stride 4 and the last one's at stride 8."""
        x = functional.relu(self.bn1(self.conv1(x)))
        first = self.layer1(functional.max_pool2d(x, 3, stride=2, padding=1))
        return first, self.layer4(self.layer3(self.layer2(first)))


class AtrousPyramid(nn.Module):
    """Combines the surroundings of each pixel in three widths, and the whole map."""

    DILATIONS = (12, 24, 36)

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.concurent = nn.ModuleList(
            [
                ConvNorm(channels_in, channels),
                *(ConvNorm(channels_in, channels, 3, dilation=dilation) for dilation in self.DILATIONS),
                GlobalAverage(channels_in, channels),
            ]
        )
        self.project = ConvNorm(channels * len(self.concurent), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels, H, W]."""
        projected: Tensor = self.project(torch.cat([branch(x) for branch in self.concurent], 1))
        return projected


class GlobalAverage(nn.Module):
    """The average over the whole map, projected, at every pixel."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *ConvNorm(channels_in, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels, H, W]."""
        average: Tensor = self.gap(x)
        return average.expand(-1, -1, *size_of(x))


class SkipProjection(nn.Module):
    """Condenses the first stage's features for the decoder."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.skip_project = ConvNorm(channels_in, SKIP_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, 32, H, W]."""
        projected: Tensor = self.skip_project(x)
        return projected


class DecoderHead(nn.Module):
    """Two separable convolutions and a projection."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            SeparableConv(channels_in, channels), SeparableConv(channels, channels), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels, H, W]."""
        decoded: Tensor = self.block(x)
        return decoded
