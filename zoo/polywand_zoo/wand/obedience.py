"""Obedience: clicks that a network overlooked are on their side of the outline all the same."""

import numpy as np
import torch
from torch import Tensor, nn

from polywand_zoo.points import Label, borders_passed

SPREAD = 3.0  # pixels: the standard deviation of the bump around an overlooked click
MARGIN = 0.5  # of a logit: how far a clicked pixel has to be on its side of 0; more than bfloat16 rounds away


class Obedience(nn.Module):
    """Lifts logits around positive clicks and lowers them around negative ones, by just what these lack.

    A click that is agreed with changes nothing. One that is not gets a Gaussian bump: where the outline passes close
    by, it bends around the click, and elsewhere an island or a hole of some pixels appears.

    Coordinates count as integers, as in `PromptMaps`, so that bfloat16 does not move them.
    """

    borders: Tensor
    pixels: Tensor

    def __init__(self, size: int) -> None:
        """Prepare for logits of size x size pixels."""
        super().__init__()
        self.size = size
        first = np.arange(size + 1, dtype=np.float32) - np.float32(0.5)
        self.register_buffer(
            "borders", torch.from_numpy(np.nextafter(first, np.float32(-np.inf), dtype=np.float32)), persistent=False
        )
        self.register_buffer("pixels", torch.arange(size), persistent=False)

    def forward(self, logits: Tensor, points: Tensor) -> Tensor:
        """Correct logits [B, 1, S, S] for points [B, N, 3] (x, y, label; pixel centres at integers)."""
        places = borders_passed(points, self.borders)[..., :2] - 1  # -1 and S are outside
        is_inside = ((places >= 0) & (places < self.size)).all(-1)
        label = points[..., 2]
        side = (label == Label.POSITIVE).to(logits.dtype) - (label == Label.NEGATIVE).to(logits.dtype)
        side = side * is_inside.to(logits.dtype)
        column, row = places.clamp(0, self.size - 1).unbind(-1)
        found = logits.flatten(1).gather(1, row * self.size + column)
        lacking = side * (MARGIN - side * found).relu()
        distances = (self.pixels - places.unsqueeze(-1)).to(logits.dtype)  # [B, N, 2, S]
        across, down = torch.exp(distances.square() * (-0.5 / SPREAD**2)).unbind(2)
        return logits + ((down * lacking.unsqueeze(-1)).transpose(1, 2) @ across).unsqueeze(1)
