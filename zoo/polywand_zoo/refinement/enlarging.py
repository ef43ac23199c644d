"""Enlarging by a whole factor, bilinear, with its gradient."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Enlarging(nn.Module):
    """Resizes [B, C, S, S] to [B, C, F S, F S] as PyTorch does with `align_corners=False`."""

    weights: Tensor

    def __init__(self, size: int, factor: int) -> None:
        """Prepare for maps of size x size pixels."""
        super().__init__()
        self.factor = factor
        unit = torch.eye(size)[None]  # a resizing of each pixel alone
        weights = functional.interpolate(unit, scale_factor=factor, mode="linear", align_corners=False)[0]
        self.register_buffer("weights", weights.contiguous(), persistent=False)  # [S, F S]

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        return functional.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)

    def pull(self, gradient: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Carry the gradient of forward's output back to x: by the transposed products."""
        return (self.weights @ gradient @ self.weights.t(),)
