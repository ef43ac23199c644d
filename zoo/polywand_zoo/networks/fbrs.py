"""f-BRS (Sofiiuk et al. 2020): networks that see distances to the clicks, made to be refined by backpropagation.

Each network comes in two parts (see `refinable`): f-BRS-B refines between them. For DeepLabV3+ that is after the atrous
pyramid, for HRNet, where its authors call it A, after the branches have been joined.
"""

import torch
from torch import Tensor, nn

from polywand_zoo.networks.deeplab import SKIP_CHANNELS, DeepLab, Layers
from polywand_zoo.networks.hrnet import HighResolutionOcr
from polywand_zoo.networks.layers import SeparableConv
from polywand_zoo.networks.refinable import enlarge

MAP_NAMES = ("positive", "negative")  # the channels of the prompt maps, in order
LEAKY_SLOPE = 0.2


class _Fbrs(nn.Module):
    """What both kinds share: five channels become the three of a backbone that was trained on photos."""

    map_channels = len(MAP_NAMES)
    feature_channels: int

    def __init__(self) -> None:
        super().__init__()
        self.rgb_conv = nn.Sequential(
            nn.Conv2d(3 + self.map_channels, 8, 1),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """Segment the clicked object.

        image: [B, 3, H, W], RGB, normalised with ImageNet's mean and deviation.
        maps: [B, 2, H, W]: distances to the positive and to the negative clicks, 0..1.
        Returns the logits [B, 1, H, W].
        """
        return enlarge(self.decode(self.encode(image, maps)), image)

    def encode(self, image: Tensor, maps: Tensor) -> Tensor:
        """See `Refinable`."""
        raise NotImplementedError

    def decode(self, features: Tensor) -> Tensor:
        """See `Refinable`."""
        raise NotImplementedError

    def mixed(self, image: Tensor, maps: Tensor) -> Tensor:
        """Mix an image [B, 3, H, W] and its maps [B, 2, H, W] to [B, 3, H, W]."""
        mixed: Tensor = self.rgb_conv(torch.cat([image, maps], 1))
        return mixed


class FbrsDeepLab(_Fbrs):
    """f-BRS with DeepLabV3+; channels: of its decoder."""

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.feature_extractor = DeepLab(layers, channels)
        self.head = LogitHead(channels)
        self.feature_channels = channels + SKIP_CHANNELS

    def encode(self, image: Tensor, maps: Tensor) -> Tensor:
        """See `Refinable`."""
        return self.feature_extractor.encode(self.mixed(image, maps))

    def decode(self, features: Tensor) -> Tensor:
        """See `Refinable`."""
        logits: Tensor = self.head(self.feature_extractor.head(features))
        return logits


class LogitHead(nn.Module):
    """Two separable convolutions and a logit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(SeparableConv(channels, half), SeparableConv(half, half), nn.Conv2d(half, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to logits [B, 1, h, w]."""
        logits: Tensor = self.layers(x)
        return logits


class FbrsHrnet(_Fbrs):
    """f-BRS with an HRNet; see `HighResolutionOcr` for the arguments."""

    def __init__(self, width: int, ocr_width: int) -> None:
        super().__init__()
        self.feature_extractor = HighResolutionOcr(width, ocr_width)
        self.feature_channels = self.feature_extractor.channels

    def encode(self, image: Tensor, maps: Tensor) -> Tensor:
        """See `Refinable`."""
        return self.feature_extractor.encode(self.mixed(image, maps))

    def decode(self, features: Tensor) -> Tensor:
        """See `Refinable`."""
        return self.feature_extractor.decode(features)
