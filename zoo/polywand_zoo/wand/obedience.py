"""Obedience: clicks that the network ignored still end on their side of the outline."""

import torch
from torch import Tensor, nn

from polywand_zoo.points import Label, borders_passed
from polywand_zoo.wand.prompts import point_borders

MARGIN = 0.5  # of a logit: how far clicked pixels have to be on their side of 0; more than bfloat16 rounds away
SPREAD = 2.0  # pixels: how fast a bump falls off around its top
TOP = 1  # pixels around the clicked one that are as high: between them lies the click itself
ROUNDS = 6  # in which neighbouring clicks of opposite sides settle how high they have to be


class Obedience(nn.Module):
    """Lifts logits around positive clicks and lowers them around negative ones, by what these lack.

    A click that is agreed with by the margin changes nothing. Any other gets a bump, a Gaussian with a flat top: where
    the outline passes close by, it bends around the click, and elsewhere an island or a hole of some pixels appears.
    A bump that would push a neighbour of the other side over is answered by one there. Opposite clicks within two
    pixels of each other cannot both be obeyed.

    It holds for a threshold at probability 0.5. Coordinates count as integers, as in `PromptMaps`, so that bfloat16
    does not move them.
    """

    borders: Tensor
    pixels: Tensor
    around: Tensor

    def __init__(self, size: int) -> None:
        """Prepare for logits of size x size pixels."""
        super().__init__()
        self.size = size
        reach = range(-TOP, TOP + 1)
        around = [(x, y) for y in reach for x in reach]
        self.register_buffer("borders", torch.from_numpy(point_borders(size, 0)), persistent=False)
        self.register_buffer("pixels", torch.arange(size), persistent=False)
        self.register_buffer("around", torch.tensor(around), persistent=False)

    def forward(self, logits: Tensor, points: Tensor) -> Tensor:
        """Correct logits [B, 1, S, S] for points [B, N, 3] (x, y, label; pixel centres at integers)."""
        positions = borders_passed(points, self.borders)[..., :2] - 1  # -1 and S are outside
        is_inside = ((positions >= 0) & (positions < self.size)).all(-1)
        label = points[..., 2]
        side = (label == Label.POSITIVE).to(logits.dtype) - (label == Label.NEGATIVE).to(logits.dtype)
        side = side * is_inside.to(logits.dtype)  # [B, N]: 1, -1, or 0 for what is no click
        column, row = (positions.unsqueeze(-2) + self.around).clamp(0, self.size - 1).unbind(-1)  # [B, N, 9]
        found = logits.flatten(1).gather(1, (row * self.size + column).flatten(1)).view_as(column)
        agreed = (side.unsqueeze(-1) * found).amin(-1)  # [B, N]: at the worst of the nine

        between = _bump(positions.unsqueeze(-2) - positions.unsqueeze(-3)).prod(-1)  # [B, N, N]
        height = side * (MARGIN - agreed).relu()
        for _ in range(ROUNDS - 1):
            raised = (between @ height.unsqueeze(-1)).squeeze(-1)
            height = height + side * (MARGIN - agreed - side * raised).relu()
        across, down = _bump(self.pixels - positions.unsqueeze(-1)).unbind(2)  # [B, N, S] each
        return logits + ((down * height.unsqueeze(-1)).transpose(1, 2) @ across).unsqueeze(1)


def _bump(distances: Tensor) -> Tensor:
    """A bump's height at whole distances in pixels, along one axis."""
    beyond = (distances.abs() - TOP).clamp(min=0).to(torch.float32)
    return torch.exp(beyond.square() * (-0.5 / SPREAD**2))
