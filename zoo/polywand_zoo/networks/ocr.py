"""Object-contextual representations (Yuan et al. 2020) of one object: each pixel gets a summary of the object."""

import torch
from torch import Tensor, nn

from polywand_zoo.networks.layers import ConvNorm


class ObjectContext(nn.Module):
    """Adds to each pixel's features what the object's pixels have in common.

    The paper lets each pixel attend to several objects. These networks have one, and a softmax over one is 1, so each
    pixel gets that object's value whole; `f_pixel` and `f_object`, whose product would be the attention, are parameters
    without an effect.
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels)
        self.conv_bn_dropout = nested(channels * 2, channels)

    def forward(self, features: Tensor, proxy: Tensor) -> Tensor:
        """Map features [B, C, H, W] and the object's representation [B, C, 1, 1] to [B, C, H, W]."""
        context = self.object_context_block(proxy).expand_as(features)
        joined: Tensor = self.conv_bn_dropout(torch.cat([context, features], 1))
        return joined


class ObjectAttention(nn.Module):
    """Attention to one object: its value."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.f_pixel = nn.Sequential(*nested(channels, key_channels), *nested(key_channels, key_channels))
        self.f_object = nn.Sequential(*nested(channels, key_channels), *nested(key_channels, key_channels))
        self.f_down = nested(channels, key_channels)
        self.f_up = nested(key_channels, channels)

    def forward(self, proxy: Tensor) -> Tensor:
        """Map the object's representation [B, C, 1, 1] to what each pixel learns of it, [B, C, 1, 1]."""
        value: Tensor = self.f_up(self.f_down(proxy))
        return value


class ObjectGather(nn.Module):
    """Represents an object as the mean of its pixels' features."""

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Map features [B, C, H, W] and logits [B, 1, H, W], whose softmax is the mean's weights, to [B, C, 1, 1]."""
        weights = logits.flatten(2).softmax(2)  # [B, 1, H W]
        return (features.flatten(2) @ weights.transpose(1, 2)).unsqueeze(3)


def nested(channels_in: int, channels: int) -> nn.Sequential:
    """Make a 1x1 convolution, and normalisation with ReLU as one module: names `0`, `1.0`."""
    convolution, norm, activation = ConvNorm(channels_in, channels)
    return nn.Sequential(convolution, nn.Sequential(norm, activation))
