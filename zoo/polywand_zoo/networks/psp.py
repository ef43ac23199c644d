"""Pyramid pooling (Zhao et al. 2017): what a map holds on average, in 1, 4, 9 and 36 overlapping cells."""

import math

import torch
from torch import Tensor, nn

from polywand_zoo.networks.layers import ConvNorm, resize

CELLS = (1, 2, 3, 6)  # along each side


class PyramidPooling(nn.Module):
    """Stacks a map with its averages in the cells of four grids, and condenses them."""

    def __init__(self, map_size: int, channels_in: int = 2048, channels: int = 512) -> None:
        """map_size: height and width of the maps, which has to be known beforehand (see `CellAverages`)."""
        super().__init__()
        reduced = channels_in // len(CELLS)
        self.stages = nn.ModuleList(
            nn.Sequential(CellAverages(map_size, cells), *ConvNorm(channels_in, reduced)) for cells in CELLS
        )
        self.bottleneck = ConvNorm(channels_in + len(CELLS) * reduced, channels)
        self.size = (map_size, map_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, S, S] to [B, channels, S, S]."""
        condensed: Tensor = self.bottleneck(torch.cat([*(resize(stage(x), self.size) for stage in self.stages), x], 1))
        return condensed


class CellAverages(nn.Module):
    """Averages over the cells of a grid, as PyTorch's adaptive average pooling does.

    Where the cells do not divide the map they overlap, and ONNX has no operator for that. An average over a rectangle
    is one over its rows of ones over its columns, so two small matrices compute the same.
    """

    weights: Tensor

    def __init__(self, map_size: int, cells: int) -> None:
        super().__init__()
        self.register_buffer("weights", averaging_matrix(map_size, cells), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, S, S] to [B, C, cells, cells]."""
        return self.weights @ (x @ self.weights.transpose(0, 1))


def averaging_matrix(size: int, cells: int) -> Tensor:
    """Return [cells, size]: cell i averages the positions from floor(i size / cells) to ceil((i + 1) size / cells)."""
    weights = torch.zeros(cells, size)
    for cell in range(cells):
        start, stop = cell * size // cells, math.ceil((cell + 1) * size / cells)
        weights[cell, start:stop] = 1 / (stop - start)
    return weights
