"""RITM (Sofiiuk et al. 2021), iterative with mask guidance: HRNet and OCR that see clicks and the mask before them.

Of its authors' code this is the variant of all published `itermask` checkpoints: the maps join after the first
convolution, clicks are disks, activations between the maps' convolutions leak.
"""

import torch
from torch import Tensor, nn

from polywand_zoo.networks.hrnet import STEM_CHANNELS, HighResolutionOcr
from polywand_zoo.networks.refinable import enlarge

MAP_NAMES = ("previous", "positive", "negative")  # the channels of the prompt maps, in order
LEAKY_SLOPE = 0.2


class Ritm(nn.Module):
    """RITM with an HRNet; see `HighResolutionOcr` for the arguments and `Refinable` for the two parts."""

    map_channels = len(MAP_NAMES)

    def __init__(self, width: int, ocr_width: int, *, small: bool = False) -> None:
        super().__init__()
        self.maps_transform = nn.Sequential(
            nn.Conv2d(self.map_channels, 16, 1),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(16, STEM_CHANNELS, 3, stride=2, padding=1),
            Scale(),
        )
        self.feature_extractor = HighResolutionOcr(width, ocr_width, small=small)
        self.feature_channels = self.feature_extractor.channels

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """Segment the clicked object.

        image: [B, 3, H, W], RGB, normalised with ImageNet's mean and deviation.
        maps: [B, 3, H, W]: the previous probability map, the positive and the negative clicks' disks of 0 and 1.
        Returns the logits [B, 1, H, W].
        """
        return enlarge(self.decode(self.encode(image, maps)), image)

    def encode(self, image: Tensor, maps: Tensor) -> Tensor:
        """See `Refinable`."""
        return self.feature_extractor.encode(image, self.maps_transform(maps))

    def decode(self, features: Tensor) -> Tensor:
        """See `Refinable`."""
        return self.feature_extractor.decode(features)


class Scale(nn.Module):
    """Multiplies by a learned number, whose sign does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.05))

    def forward(self, x: Tensor) -> Tensor:
        """Scale x of any shape."""
        return x * self.scale.abs()
