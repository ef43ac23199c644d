"""HRNetV2 (Wang et al. 2020) with an object-contextual head: what RITM and f-BRS find and classify pixels with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.networks.layers import ConvNorm, conv, resize, size_of
from polywand_zoo.networks.ocr import ObjectContext, ObjectGather
from polywand_zoo.networks.resnet import BasicBlock, bottleneck_stage

STEM_CHANNELS = 64


class HighResolutionOcr(nn.Module):
    """Four branches, each at half of the former's resolution, that exchange features; then OCR.

    width: channels of the branch at stride 4; the others have 2, 4 and 8 times as many.
    ocr_width: channels of the object's representation.
    small: half as many blocks, and fewer modules in the later stages (HRNet-W18-C-Small-v2).
    """

    def __init__(self, width: int, ocr_width: int, *, small: bool = False) -> None:
        super().__init__()
        blocks, modules = (2, (1, 3, 2)) if small else (4, (1, 4, 3))
        channels = [width * 2**branch for branch in range(4)]
        self.branch_channels = tuple(channels)
        self.channels = sum(channels)
        self.conv1 = conv(3, STEM_CHANNELS, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv2 = conv(STEM_CHANNELS, STEM_CHANNELS, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = bottleneck_stage(STEM_CHANNELS, 64, [1] * blocks)
        self.transition1 = nn.ModuleList([ConvNorm(256, channels[0], 3), nn.Sequential(downsampling(256, channels[1]))])
        self.stage2 = stage(channels[:2], blocks, modules[0])
        self.transition2 = new_branch(channels[:3])
        self.stage3 = stage(channels[:3], blocks, modules[1])
        self.transition3 = new_branch(channels)
        self.stage4 = stage(channels, blocks, modules[2])
        self.conv3x3_ocr = ConvNorm(self.channels, 2 * ocr_width, 3, bias=True)
        self.ocr_gather_head = ObjectGather()
        self.ocr_distri_head = ObjectContext(2 * ocr_width, ocr_width)
        self.cls_head = nn.Conv2d(2 * ocr_width, 1, 1)
        self.aux_head = nn.Sequential(
            *ConvNorm(self.channels, self.channels, bias=True), nn.Conv2d(self.channels, 1, 1)
        )

    def encode(self, image: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Map an image [B, 3, H, W] to [B, 15 width, H / 4, W / 4]: all branches at the finest one's size.

        prompt: [B, 64, H / 2, W / 2], added to the first features.
        """
        return together(self.branches(image, prompt))

    def branches(self, image: Tensor, prompt: Tensor | None = None) -> list[Tensor]:
        """Map an image [B, 3, H, W] to the branches [B, width 2^i, H / 2^(i + 2), W / 2^(i + 2)]; see `encode`."""
        x = functional.relu(self.bn1(self.conv1(image)))
        if prompt is not None:
            x = x + prompt
        x = self.layer1(functional.relu(self.bn2(self.conv2(x))))
        branches = self.stage2([transition(x) for transition in self.transition1])
        for transitions, exchange in ((self.transition2, self.stage3), (self.transition3, self.stage4)):
            # What there was stays as it is; the new branch grows out of the last one.
            branches = exchange([*branches, transitions[-1](branches[-1])])
        found: list[Tensor] = branches
        return found

    def decode(self, features: Tensor) -> Tensor:
        """Map the features [B, 15 width, h, w] to logits [B, 1, h, w]."""
        auxiliary = self.aux_head(features)
        pixels = self.conv3x3_ocr(features)
        logits: Tensor = self.cls_head(self.ocr_distri_head(pixels, self.ocr_gather_head(pixels, auxiliary)))
        return logits


def together(branches: Sequence[Tensor]) -> Tensor:
    """Resize all branches to the first one's size and put their channels together."""
    finest = size_of(branches[0])
    return torch.cat([branches[0], *(resize(branch, finest) for branch in branches[1:])], 1)


class Exchange(nn.Module):
    """Each branch computes, then each gets the sum of all, resized and projected to its own shape."""

    def __init__(self, channels: list[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))) for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(projection(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Map the branches' features to the same shapes."""
        computed = [compute(x) for compute, x in zip(self.branches, branches, strict=True)]
        return [self._fused(computed, target) for target in range(len(computed))]

    def _fused(self, branches: list[Tensor], target: int) -> Tensor:
        total: Tensor | None = None
        for source, (branch, project) in enumerate(zip(branches, self._projections(target), strict=True)):
            projected = project(branch)
            if source > target:
                projected = resize(projected, size_of(branches[target]))
            total = projected if total is None else total + projected
        assert total is not None  # there is at least one branch
        return functional.relu(total)

    def _projections(self, target: int) -> nn.ModuleList:
        projections = self.fuse_layers[target]
        assert isinstance(projections, nn.ModuleList)
        return projections


def projection(channels: list[int], source: int, target: int) -> nn.Module:
    """Make what brings one branch's features to another's channels and, on the way down, to its size."""
    if source == target:
        return nn.Identity()
    if source > target:
        return ConvNorm(channels[source], channels[target], activation=False)
    halvings = [downsampling(channels[source], channels[source]) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, downsampling(channels[source], channels[target], activation=False))


def downsampling(channels_in: int, channels: int, *, activation: bool = True) -> ConvNorm:
    """Make a 3x3 convolution to half of the size."""
    return ConvNorm(channels_in, channels, 3, stride=2, activation=activation)


def new_branch(channels: list[int]) -> nn.ModuleList:
    """Make the transition to one branch more; its index in the list is part of the parameters' names."""
    kept = (nn.Identity() for _ in channels[:-1])
    return nn.ModuleList([*kept, nn.Sequential(downsampling(channels[-2], channels[-1]))])


def stage(channels: list[int], blocks: int, modules: int) -> nn.Sequential:
    """Make a stage of branches with these channels."""
    return nn.Sequential(*(Exchange(channels, blocks) for _ in range(modules)))
