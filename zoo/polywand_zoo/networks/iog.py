"""Inside-Outside Guidance (Zhang et al. 2020): a ResNet-101 that sees a click in the object and corners around it.

The details that the paper leaves open are those of its authors' PyTorch code: an output stride of 16, the last stage
with dilations 2, 4 and 8, bilinear resizing with corners kept, no normalisation of the image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.networks.layers import ConvNorm, conv, resize
from polywand_zoo.networks.psp import PyramidPooling
from polywand_zoo.networks.resnet import Bottleneck, bottleneck_stage

INPUT_SIZE = 512  # height and width, in pixels
STRIDE = 16
FINE_SIZE = (128, 128)  # of the maps that the fine network joins
CHANNELS = 256  # of the maps of both networks


class Iog(nn.Module):
    """IOG with a ResNet-101."""

    def __init__(self) -> None:
        super().__init__()
        self.Coarse_net = CoarseNet()
        self.Fine_net = FineNet()
        self.backbone = Backbone()
        self.psp4 = PyramidPooling(INPUT_SIZE // STRIDE)

    def forward(self, image: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Segment the object that the inside point lies in and the outside points surround.

        image: [B, 3, 512, 512], RGB, 0..255.
        inside, outside: [B, 1, 512, 512], 0..255: a Gaussian at each point.
        Returns the logits [B, 1, 512, 512] of the fine network.
        """
        at4, at8, at16, deepest = self.backbone(torch.cat([image, inside, outside], 1))
        logits = self.Fine_net(self.Coarse_net([self.psp4(deepest), at16, at8, at4]))
        return resize(logits, (INPUT_SIZE, INPUT_SIZE))


class Backbone(nn.Module):
    """ResNet-101 with an output stride of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(5, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = bottleneck_stage(64, 64, [1] * 3)
        self.layer2 = bottleneck_stage(256, 128, [1] * 4, stride=2)
        self.layer3 = bottleneck_stage(512, 256, [1] * 23, stride=2)
        self.layer4 = bottleneck_stage(1024, 512, [2, 4, 8])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map [B, 5, S, S] to 256, 512, 1024 and 2048 channels at strides 4, 8, 16 and 16."""
        x = functional.relu(self.bn1(self.conv1(x)))
        at4 = self.layer1(functional.max_pool2d(x, 3, stride=2, padding=1))
        at8 = self.layer2(at4)
        at16 = self.layer3(at8)
        return at4, at8, at16, self.layer4(at16)


class CoarseNet(nn.Module):
    """Carries the deepest features up to the finest ones.

    `predict` gave a logit of each map to the loss in training; nothing reads it when the network is used.
    """

    CHANNELS_IN = (512, 1024, 512, 256)

    def __init__(self) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNorm(channels, CHANNELS) for channels in self.CHANNELS_IN)
        self.upsamples = nn.ModuleList(Upsample() for _ in self.CHANNELS_IN[1:])
        self.predict = nn.ModuleList(Prediction() for _ in self.CHANNELS_IN)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map features, the deepest first, to maps of 256 channels at the same strides: 16, 16, 8, 4."""
        deep, at16, at8, at4 = (lateral(x) for lateral, x in zip(self.laterals, features, strict=True))
        at16 = at16 + deep  # the same stride, so the first of `upsamples` is never used
        at8 = at8 + self.upsamples[1](at16)
        return [deep, at16, at8, at4 + self.upsamples[2](at8)]


class Upsample(nn.Sequential):
    """Twice the size, then a 1x1 convolution, normalised: `0` resizes, `1` and `2` hold the parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *ConvNorm(CHANNELS, CHANNELS, activation=False),
        )


class Prediction(nn.Sequential):
    """The parameters of a logit per pixel; `4` resized the logits before they were normalised."""

    def __init__(self) -> None:
        super().__init__(
            *ConvNorm(CHANNELS, CHANNELS),
            conv(CHANNELS, 1, 3),
            nn.Upsample(size=FINE_SIZE, mode="bilinear", align_corners=True),
            nn.BatchNorm2d(1),
        )


class FineNet(nn.Module):
    """Refines each map, the deeper the longer, and joins them at stride 4."""

    WIDTH = 128  # of the bottlenecks

    def __init__(self) -> None:
        super().__init__()
        self.cascade = nn.ModuleList(
            nn.Sequential(*(self.bottleneck(CHANNELS) for _ in range(blocks))) for blocks in (3, 2, 1, 0)
        )
        self.final_predict = nn.Sequential(self.bottleneck(4 * CHANNELS), conv(CHANNELS, 1, 3), nn.BatchNorm2d(1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map the coarse network's maps to logits [B, 1, 128, 128]."""
        refined = [cascade(x) for cascade, x in zip(self.cascade, maps, strict=True)]
        joined = torch.cat([*(resize(x, FINE_SIZE) for x in refined[:-1]), refined[-1]], 1)
        logits: Tensor = self.final_predict(joined)
        return logits

    def bottleneck(self, channels_in: int) -> Bottleneck:
        """Make a bottleneck to 256 channels that always projects what was there."""
        return Bottleneck(channels_in, self.WIDTH, CHANNELS)
