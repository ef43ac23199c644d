"""DEXTR, Deep Extreme Cut (Maninis et al. 2018): a dilated ResNet-101 that also sees the extreme points.

The details that the paper leaves open are those of its authors' PyTorch code: strides in the first 1x1 convolutions,
dilations 2 and 4 in the last two stages (so that the map has an eighth of the input's size), bilinear resizing with
corners kept, no normalisation of the image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.networks.layers import conv
from polywand_zoo.networks.psp import PyramidPooling
from polywand_zoo.networks.resnet import bottleneck_stage

INPUT_SIZE = 512  # height and width, in pixels
STRIDE = 8


class Dextr(nn.Module):
    """DEXTR with a ResNet-101 and a pyramid-pooling classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(4, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = bottleneck_stage(64, 64, [1] * 3)
        self.layer2 = bottleneck_stage(256, 128, [1] * 4, stride=2, stride_first=True)
        self.layer3 = bottleneck_stage(512, 256, [2] * 23)
        self.layer4 = bottleneck_stage(1024, 512, [4] * 3)
        self.layer5 = PyramidClassifier(INPUT_SIZE // STRIDE)

    def forward(self, image: Tensor, heat: Tensor) -> Tensor:
        """Segment the object whose extreme points are hot.

        image: [B, 3, 512, 512], RGB, 0..255.
        heat: [B, 1, 512, 512], 0..255: a Gaussian at each extreme point.
        Returns the logits [B, 1, 64, 64]; the corners' pixels lie on the input's corners.
        """
        x = functional.relu(self.bn1(self.conv1(torch.cat([image, heat], 1))))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.layer5(x)
        return logits


class PyramidClassifier(PyramidPooling):
    """Pyramid pooling, and a logit of what it found."""

    def __init__(self, map_size: int) -> None:
        super().__init__(map_size)
        self.final = nn.Conv2d(512, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, 2048, S, S] to logits [B, 1, S, S]."""
        logits: Tensor = self.final(super().forward(x))
        return logits
