"""The two parts of a click network between which f-BRS scales and shifts channels, as they are exported.

The encoder maps IMAGE [B, H, W, 3], POINTS [B, N, 3] and perhaps PREV_MASK [B, 1, H, W] to features. The head maps
these, and what one evaluation of L-BFGS tries, to logits, a loss and its gradient. Features may be several tensors,
those that are scaled first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polywand_zoo.refinement.gradients import WithGradient

Features = tuple[Tensor, ...]


def unchanged(*features: Tensor) -> Features:
    """Return features as they are."""
    return features


@dataclass(frozen=True, slots=True)
class Parts:
    """A network in two parts.

    encoder: its inputs to the features [B, C, h, w]: one tensor, or a tuple of them.
    decoder: the features, scaled and shifted, to logits [B, 1, h, w]; in operations that have a gradient here.
    channels: C of each of the features.
    scaled: how many of them are scaled and shifted, the first ones; the others reach the decoder as they are.
    joined: brings the features to the form that they have in the network as it was published.
    is_fixed: whether the features are always of the same size, so that runtimes can prepare for it.
    """

    encoder: nn.Module
    decoder: nn.Module
    channels: tuple[int, ...]
    scaled: int = 1
    joined: Callable[..., Features] = unchanged
    is_fixed: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, outputs of the encoder and inputs of the head."""
        if len(self.channels) == 1:
            return ("FEATURES",)
        return tuple(f"FEATURES_{index}" for index in range(len(self.channels)))

    @property
    def variables(self) -> int:
        """How many scales there are, and how many biases."""
        return sum(self.channels[: self.scaled])


class Head(nn.Module):
    """One evaluation: logits, the loss at the clicked pixels, and its gradient.

    The loss is the authors': the mean over the pixels of positive clicks of (1 - p)², and over those of negative ones
    of p². It reads the logits, resized to the image's size, at these few pixels only. So the resizing is done for them
    alone, as a product of the logits with one row of weights per axis, whose gradient is the transposed product.
    """

    INPUTS = ("SCALE", "BIAS", "PIXELS")
    OUTPUTS = ("LOGITS", "LOSS", "WORST", "SCALE_GRADIENT", "BIAS_GRADIENT")

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.channels = list(parts.channels[: parts.scaled])
        self.decoder = WithGradient(parts.decoder)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Evaluate.

        inputs: the features, then
            scale, bias: [B, C] of all scaled channels: x becomes scale x + bias.
            pixels: [B, K, 4], the clicked pixels: x, y as fractions of the way from the first pixel's centre to the
                last one's, and the weights of (1 - p)² and of p², 0 for none.
        Returns LOGITS [B, 1, h, w], LOSS [B, 1], WORST [B, 2] (the largest 1 - p of positive and p of negative clicks),
        and the gradient of LOSS with respect to SCALE and BIAS [B, C].
        """
        *features, scale, bias, pixels = inputs
        scales, biases = (torch.split(values[..., None, None], self.channels, 1) for values in (scale, bias))
        scaled = [x * factor + shift for x, factor, shift in zip(features, scales, biases, strict=False)]
        computed = self.decoder.compute(*scaled, *features[len(scaled) :])
        logits = computed.output

        x, y, positive, negative = pixels.unbind(2)
        across, down = interpolation(x, logits.shape[3]), interpolation(y, logits.shape[2])
        clicked = ((down @ logits.squeeze(1)) * across).sum(2)  # [B, K]
        probability, absent = clicked.sigmoid(), (-clicked).sigmoid()  # 1 - p would lose the digits that matter
        loss = (positive * absent * absent + negative * probability * probability).sum(1, keepdim=True)
        worst = torch.stack([((positive > 0) * absent).amax(1), ((negative > 0) * probability).amax(1)], 1)

        slope = 2 * (negative * probability - positive * absent) * probability * absent
        pulled = self.decoder.pull(computed, ((down * slope.unsqueeze(2)).transpose(1, 2) @ across).unsqueeze(1))
        gradients = pulled[: len(scaled)]
        factors = [(gradient * x).sum((2, 3)) for gradient, x in zip(gradients, features, strict=False)]
        shifts = [gradient.sum((2, 3)) for gradient in gradients]
        return logits, loss, worst, torch.cat(factors, 1), torch.cat(shifts, 1)


def interpolation(fractions: Tensor, length: int) -> Tensor:
    """Weights [B, K, length] of a bilinear resizing's row at fractions [B, K] of the way along an axis."""
    positions = fractions * (length - 1)
    return (1 - (positions.unsqueeze(2) - torch.arange(length, device=fractions.device)).abs()).relu()
