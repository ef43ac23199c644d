"""The second generation of the wand network: the first, with a fine path that draws outlines in single pixels.

The first generation decides at stride 2 and doubles that. Here a narrow path sees the edges of the photo and the prompt
at stride 2 and answers for each of the four pixels below. It begins as a correction of nothing, as does everything else
that is new, so a network of the first generation is where training starts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.wand.network import (
    MEAN_RGB,
    STD_RGB,
    ContextBlock,
    ConvNorm,
    CspBackbone,
    Decoder,
    ImageFeatures,
    Laterals,
    PromptEncoder,
    PromptFeatures,
    Residual,
    WandNetwork,
    activate,
    double,
)
from polywand_zoo.wand.prompts import FINE_MAP_NAMES

DILATIONS = (1, 2, 4, 1)  # of the decoder's context blocks; the last is new
FINE_CHANNELS = 16

PROMPT_STEM = "prompt_encoder.stride2.0.weight"  # [16, maps, 3, 3]


class FineImage(NamedTuple):
    """What the decoder reads of an image; edges: [B, 16, S / 2, S / 2]."""

    laterals: ImageFeatures
    edges: Tensor


class FinePrompt(NamedTuple):
    """The prompt maps, condensed; stride2: [B, 16, S / 2, S / 2]."""

    condensed: PromptFeatures
    stride2: Tensor


class FineNetwork(nn.Module):
    """Backbone, laterals and edges; prompt encoder; decoder and fine path."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD_RGB).view(1, 3, 1, 1), persistent=False)
        self.backbone = CspBackbone()
        self.laterals = Laterals()
        self.edges = Edges(FINE_CHANNELS)
        self.prompt_encoder = PromptEncoder(len(FINE_MAP_NAMES))
        self.decoder = Decoder(DILATIONS)
        self.fine = FinePath(FINE_CHANNELS)

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """Segment what the maps point at.

        image: [B, 3, S, S], RGB, 0..255, S a multiple of 32.
        maps: [B, 6, S, S], 0..1, the channels of `prompts.FINE_MAP_NAMES`.
        Returns the logits [B, 1, S, S].
        """
        logits, _ = self.segment(image, maps)
        return logits

    def segment(self, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """As forward; the features of `coarse` come along."""
        features, prompt = self.encode(image), self.read(maps)
        coarse = self.coarse(features, prompt)
        return self.sharpen(coarse, features, prompt), coarse

    def encode(self, image: Tensor) -> FineImage:
        """Encode an image [B, 3, S, S], RGB, 0..255; does not depend on the prompt."""
        normalised = (image - self.mean) / self.std
        features = self.backbone(normalised)
        return FineImage(self.laterals(features), self.edges(normalised, features[0]))

    def read(self, maps: Tensor) -> FinePrompt:
        """Encode prompt maps [B, 6, S, S]."""
        at2 = self.prompt_encoder.stride2(maps)
        return FinePrompt(self.prompt_encoder.condense(at2), at2)

    def coarse(self, image: FineImage, prompt: FinePrompt) -> Tensor:
        """Find the object: features [B, 96, S / 8, S / 8], which `decoder.auxiliary` reads in training."""
        return self.decoder.coarse(image.laterals, prompt.condensed)

    def sharpen(self, x: Tensor, image: FineImage, prompt: FinePrompt) -> Tensor:
        """Find the outline: from the features of `coarse` to logits [B, 1, S, S]."""
        at4, at2 = self.decoder.outline(x, image.laterals, prompt.condensed)
        logits: Tensor = double(self.decoder.output(at2)) + self.fine(at4, at2, image.edges, prompt.stride2)
        return logits


class Edges(nn.Module):
    """The photo at stride 2: fresh edge filters beside the backbone's first features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filters = ConvNorm(3, 16, stride=2)
        self.project = nn.Conv2d(16 + 32, channels, 1)

    def forward(self, normalised: Tensor, stem: Tensor) -> Tensor:
        """Map a normalised image [B, 3, S, S] and the stem's features [B, 32, S / 2, S / 2] to [B, C, S / 2, S / 2]."""
        edges: Tensor = self.project(torch.cat([self.filters(normalised), stem], dim=1))
        return edges


class FinePath(nn.Module):
    """Joins what the decoder found with edges and prompt at stride 2, and corrects the logits of single pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(48, channels, 1)
        self.outline = nn.Conv2d(16, channels, 1)
        self.prompt = nn.Conv2d(16, channels, 1)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.refine = Residual(channels)
        self.correct = nn.Conv2d(channels, 4, 1)  # one logit for each of the four pixels of stride 2

    def forward(self, at4: Tensor, at2: Tensor, edges: Tensor, prompt: Tensor) -> Tensor:
        """Map features at stride 4 [B, 48, …] and at stride 2 [B, 16 | C | 16, …] to corrections [B, 1, S, S]."""
        x = double(self.coarse(at4)) + self.outline(at2) + edges + self.prompt(prompt)
        return functional.pixel_shuffle(self.correct(self.refine(activate(self.norm(x)))), 2)


def grow(first: WandNetwork) -> FineNetwork:
    """Return a network of the second generation that computes what `first` does, on the maps that both read."""
    network = FineNetwork()
    with torch.no_grad():
        _silence(network)
        ours, theirs = network.state_dict(), first.state_dict()
        known = theirs[PROMPT_STEM]
        unknown = torch.zeros_like(ours[PROMPT_STEM][:, known.shape[1] :])
        network.load_state_dict(ours | theirs | {PROMPT_STEM: torch.cat([known, unknown], dim=1)})
    return network


def _silence(network: FineNetwork) -> None:
    """Let the new parts begin as corrections of nothing."""
    _zero(network.fine.correct)
    block = network.decoder.context[-1]
    assert isinstance(block, ContextBlock)  # what the decoder is made of
    for part in (block.neighbourhood[1], block.contract[1], block.attention.project):
        _zero(part)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()
