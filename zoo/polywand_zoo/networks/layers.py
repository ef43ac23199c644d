"""Layers that several of the published networks share."""

from torch import Tensor, nn
from torch.nn import functional


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch normalisation and, unless switched off, ReLU; pads to keep the size."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        activation: bool = True,
        bias: bool = False,
    ) -> None:
        layers: list[nn.Module] = [
            conv(channels_in, channels, kernel, stride=stride, dilation=dilation, bias=bias),
            nn.BatchNorm2d(channels),
        ]
        super().__init__(*layers, *([nn.ReLU()] if activation else []))


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 of all of them, normalised, ReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels, H, W]."""
        convolved: Tensor = self.body(x)
        return convolved


def conv(
    channels_in: int, channels: int, kernel: int, *, stride: int = 1, dilation: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Make a convolution that keeps the size (divided by stride)."""
    return nn.Conv2d(channels_in, channels, kernel, stride, dilation * (kernel // 2), dilation, bias=bias)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [B, C, h, w] to size (H, W), bilinear, so that the centres of the corner pixels stay at the corners.

    All four papers' code resizes so (`align_corners=True`).
    """
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width of [B, C, H, W]; in a trace they stay variable."""
    return x.shape[2], x.shape[3]
