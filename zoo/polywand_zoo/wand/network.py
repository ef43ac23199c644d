"""The wand network: a compact segmenter that sees a photo and maps of what its user pointed at.

An image part (backbone and laterals) depends on the crop only; a prompt part (prompt encoder and decoder) is run again
for every click. Training encodes a crop once and decodes it several times, so the two stay separate here.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.wand.prompts import MAP_NAMES

INPUT_SIZE = 384  # height and width of the crops that the network sees, in pixels
COARSE_CHANNELS, COARSE_STRIDE = 96, 8  # of the features in which the decoder finds the object
DISK_RADIUS = 6  # of a point's disk in a prompt map, in pixels at INPUT_SIZE

LEAKY_SLOPE = 0.1
MEAN_RGB = (123.675, 116.28, 103.53)  # of the photos that the backbone was first trained on, in grey levels
STD_RGB = (58.395, 57.12, 57.375)


class ImageFeatures(NamedTuple):
    """What the decoder reads of an image: [B, C, S / stride, S / stride]."""

    stride2: Tensor
    stride4: Tensor
    stride8: Tensor
    stride16: Tensor


class PromptFeatures(NamedTuple):
    """The prompt maps, condensed: [B, C, S / stride, S / stride]."""

    stride4: Tensor
    stride8: Tensor
    stride16: Tensor


class WandNetwork(nn.Module):
    """Backbone, laterals, prompt encoder and decoder."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD_RGB).view(1, 3, 1, 1), persistent=False)
        self.backbone = CspBackbone()
        self.laterals = Laterals()
        self.prompt_encoder = PromptEncoder()
        self.decoder = Decoder()

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """Segment what the maps point at.

        image: [B, 3, S, S], RGB, 0..255, S a multiple of 32.
        maps: [B, 5, S, S], 0..1, the channels of `prompts.MAP_NAMES`.
        Returns the logits [B, 1, S, S].
        """
        logits, _ = self.segment(image, maps)
        return logits

    def segment(self, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """As forward; the features [B, 96, S / 8, S / 8] come along in which the object was found."""
        features: ImageFeatures = self.laterals(self.backbone((image - self.mean) / self.std))
        prompt: PromptFeatures = self.prompt_encoder(maps)
        coarse = self.decoder.coarse(features, prompt)
        return double(self.decoder.sharpen(coarse, features, prompt)), coarse


class CspBackbone(nn.Module):
    """The backbone of NanoDet-g: a stem and four cross-stage partial stages of plain 3x3 convolutions.

    Its batch normalisation was folded into the convolutions before we got it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen_stages = 0
        self.stem = conv3x3(3, 32, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            [
                CspStage(32, residuals=1, stride=1),
                CspStage(64, residuals=2, stride=2),
                CspStage(128, residuals=2, stride=2),
                CspStage(256, residuals=3, stride=2),
            ]
        )

    def freeze(self, stages: int) -> None:
        """Exclude the stem and the first stages from training; 0 excludes nothing."""
        self.frozen_stages = stages
        for module in (self.stem, *self.stages[:stages]) if stages else ():
            module.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode a normalised image [B, 3, S, S] to 32, 64, 128, 256, 512 channels at strides 2, 4, 8, 16, 32."""
        features = [activate(self.stem(image))]
        x = self.pool(features[0])
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number < self.frozen_stages:
                x = x.detach()
            features.append(x)
        return features


class CspStage(nn.Module):
    """One stage: what enters it goes through residuals and past them, and both are stacked: C to 2 C channels."""

    def __init__(self, channels: int, *, residuals: int, stride: int) -> None:
        super().__init__()
        self.enter = conv3x3(channels, channels, stride)
        self.residuals = nn.Sequential(*(StackedResidual(channels) for _ in range(residuals)))
        self.leave = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 2 C, H / stride, W / stride]."""
        entered = activate(self.enter(x))
        return torch.cat([activate(self.leave(self.residuals(entered))), entered], dim=1)


class StackedResidual(nn.Module):
    """Half of the channels computed, and half of them computed further; stacked where others would add."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv3x3(channels, channels // 2)
        self.refine = conv3x3(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        reduced = activate(self.reduce(x))
        return torch.cat([activate(self.refine(reduced)), reduced], dim=1)


class Laterals(nn.Module):
    """Projects the backbone's features to the decoder's widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stride2 = nn.Conv2d(32, 16, 1)
        self.stride4 = nn.Conv2d(64, 48, 1)
        self.stride8 = nn.Conv2d(128, 96, 1)
        self.stride16 = nn.Conv2d(256, 128, 1)
        self.stride32 = nn.Conv2d(512, 128, 1)  # added at stride 16, where the decoder begins

    def forward(self, features: list[Tensor]) -> ImageFeatures:
        """Project the backbone's features at strides 2, 4, 8, 16, 32."""
        at2, at4, at8, at16, at32 = features
        deepest = self.stride16(at16) + double(self.stride32(at32))
        return ImageFeatures(self.stride2(at2), self.stride4(at4), self.stride8(at8), deepest)


class PromptEncoder(nn.Module):
    """Condenses the prompt maps, so that a click is known at every scale before the decoder begins."""

    def __init__(self, maps: int = len(MAP_NAMES)) -> None:
        super().__init__()
        self.stride2 = ConvNorm(maps, 16, stride=2)
        self.stride4 = ConvNorm(16, 32, stride=2)
        self.stride8 = ConvNorm(32, 48, stride=2)
        self.stride16 = ConvNorm(48, 128, stride=2)

    def forward(self, maps: Tensor) -> PromptFeatures:
        """Encode maps [B, 5, S, S]."""
        return self.condense(self.stride2(maps))

    def condense(self, at2: Tensor) -> PromptFeatures:
        """Go on from the maps at stride 2, [B, 16, S / 2, S / 2]."""
        at4 = self.stride4(at2)
        at8 = self.stride8(at4)
        return PromptFeatures(at4, at8, self.stride16(at8))


class Decoder(nn.Module):
    """Carries a click across the image at stride 16, then sharpens the outline up to stride 2."""

    def __init__(self, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.context_norm: nn.Module = nn.BatchNorm2d(128)
        self.context = nn.Sequential(*(ContextBlock(128, dilation) for dilation in dilations))
        self.fuse8 = FuseUp(128, COARSE_CHANNELS, refine=Residual(COARSE_CHANNELS), prompt_channels=48)
        self.fuse4 = FuseUp(COARSE_CHANNELS, 48, refine=Residual(48), prompt_channels=32)
        self.fuse2 = FuseUp(48, 16, refine=ConvNorm(16, 16))
        self.auxiliary = nn.Conv2d(COARSE_CHANNELS, 1, 1)  # logits at stride 8, for a loss and for `refined`
        self.output = nn.Conv2d(16, 1, 1)
        nn.init.constant_(self.output.bias, -1.0)  # type: ignore[arg-type]  # most pixels are background

    def coarse(self, image: ImageFeatures, prompt: PromptFeatures) -> Tensor:
        """Find the object: features [B, 96, S / 8, S / 8], which `auxiliary` reads in training."""
        x = self.context(self.context_norm(image.stride16) + prompt.stride16)
        fused: Tensor = self.fuse8(x, image.stride8, prompt.stride8)
        return fused

    def sharpen(self, x: Tensor, image: ImageFeatures, prompt: PromptFeatures) -> Tensor:
        """Find the outline: from the features of `coarse` to logits [B, 1, S / 2, S / 2]."""
        _, at2 = self.outline(x, image, prompt)
        logits: Tensor = self.output(at2)
        return logits

    def outline(self, x: Tensor, image: ImageFeatures, prompt: PromptFeatures) -> tuple[Tensor, Tensor]:
        """Go on from the features of `coarse`: [B, 48, S / 4, S / 4] and [B, 16, S / 2, S / 2]."""
        at4: Tensor = self.fuse4(x, image.stride4, prompt.stride4)
        at2: Tensor = self.fuse2(at4, image.stride2)
        return at4, at2


class ContextBlock(nn.Module):
    """Neighbourhood, then the whole image, then each pixel alone; each added to what was there."""

    EXPANSION = 3

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.neighbourhood = ConvNorm(channels, channels, dilation=dilation)
        self.attention = Attention(channels, heads=4)
        self.expand = ConvNorm(channels, channels * self.EXPANSION, kernel=1)
        self.contract = ConvNorm(channels * self.EXPANSION, channels, kernel=1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        x = x + self.neighbourhood(x)
        x = x + self.attention(x)
        mixed: Tensor = x + self.contract(self.expand(x))
        return mixed


class Attention(nn.Module):
    """Self-attention among all pixels; positions are known from the convolutions around it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        batch = x.shape[0]
        depth = self.project.in_channels // self.heads
        # Split after the reshape, not before: OpenVINO splits an image slowly, because it keeps channels last.
        projected = self.query_key_value(self.norm(x)).view(batch, 3, self.heads, depth, -1)
        query, key, value = projected.unbind(1)  # [B, heads, depth, pixels]
        weights = (query.transpose(-1, -2) * depth**-0.5 @ key).softmax(-1)  # [B, heads, pixels, pixels]
        attended: Tensor = self.project((value @ weights.transpose(-1, -2)).view_as(x))
        return attended


class FuseUp(nn.Module):
    """One step up: twice the size, joined with the image and the prompt at the new stride, refined."""

    def __init__(self, coarse_channels: int, channels: int, refine: nn.Module, prompt_channels: int = 0) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(coarse_channels, channels, 1)
        self.prompt = nn.Conv2d(prompt_channels, channels, 1) if prompt_channels else None
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.refine = refine

    def forward(self, x: Tensor, image: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Map x [B, coarse channels, H, W] to [B, channels, 2 H, 2 W].

        image: [B, channels, 2 H, 2 W]; prompt: [B, prompt channels, 2 H, 2 W], for a step that was made with one.
        """
        x = double(self.coarse(x)) + image
        if self.prompt is not None:
            x = x + self.prompt(prompt)
        refined: Tensor = self.refine(activate(self.norm(x)))
        return refined


class Residual(nn.Module):
    """Two 3x3 convolutions, added to what was there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        refined: Tensor = x + self.second(self.first(x))
        return refined


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation and, unless switched off, activation; keeps the size (divided by stride)."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2)
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, channels, kernel, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(channels),
        ]
        if activation:
            layers.append(nn.LeakyReLU(LEAKY_SLOPE))
        super().__init__(*layers)


def conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution that keeps the size (divided by stride)."""
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1)


def activate(x: Tensor) -> Tensor:
    """Apply the activation that every layer here uses."""
    return functional.leaky_relu(x, LEAKY_SLOPE)


def double(x: Tensor) -> Tensor:
    """Resize [B, C, H, W] to [B, C, 2 H, 2 W], bilinear."""
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
