"""Networks in two parts, between which backpropagating refinement (Sofiiuk et al. 2020) scales and shifts channels."""

from typing import Protocol

from torch import Tensor

from polywand_zoo.networks.layers import resize, size_of


class Refinable(Protocol):
    """A click network that can be run up to its refinable features, and from there on again and again.

    feature_channels: C, the length of f-BRS's scale and bias.
    map_channels: M, the number of prompt maps.
    """

    feature_channels: int
    map_channels: int

    def encode(self, image: Tensor, maps: Tensor) -> Tensor:
        """Map a normalised image [B, 3, H, W] and prompt maps [B, M, H, W] to features [B, C, h, w]."""
        ...

    def decode(self, features: Tensor) -> Tensor:
        """Map features [B, C, h, w] to logits [B, 1, h, w], which `enlarge` brings to the image's size."""
        ...


def enlarge(logits: Tensor, image: Tensor) -> Tensor:
    """Bring logits [B, 1, h, w] to the height and width of an image [B, 3, H, W]."""
    return resize(logits, size_of(image))
