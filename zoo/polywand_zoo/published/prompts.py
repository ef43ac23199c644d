"""Prompt maps of the published networks: Gaussians, click disks and distances, drawn inside of the exported graphs.

Formulas are those of the authors' code; every module says which. All of them have to stay right where OpenVINO
computes in bfloat16, whose 8 bits cannot separate pixel 256 from pixel 257. What is exact there: comparisons with the
graph's own inputs, sums of what those found, and integers. So positions are found by counting the borders that a
coordinate has passed, and what is left for arithmetic is small.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.points import Label, borders_passed

GAUSSIAN_WIDTH = 10  # full width at half maximum, in pixels
GAUSSIAN_HEIGHT = 255  # as an image's channels
OUTSIDE_SHIFT = 10  # of the box's corners outwards, in pixels
FAR = 10_000  # pixels, outside of every map; its square still fits an integer

COARSE_STEP = 16  # pixels
LARGEST_MAP = 4096  # pixels on a side, up to which positions stay exact in bfloat16
NOWHERE = 1e6  # the squared distance to a click that is not there


class WholePixels(nn.Module):
    """Cuts coordinates down to whole pixels towards zero, as NumPy's `astype(int)` does in DEXTR's and IOG's code.

    Exact between -REACH and size + REACH, and beyond cut to those: what is drawn there is not seen in the map.
    """

    REACH = 64
    upwards: Tensor
    downwards: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("upwards", torch.from_numpy(just_below(np.arange(1, size + self.REACH + 1))), False)
        self.register_buffer("downwards", -torch.arange(1.0, self.REACH + 1), False)

    def forward(self, points: Tensor) -> Tensor:
        """Map points [B, N, 3] to whole numbers [B, N, 3], int32; the label's column means nothing then."""
        passed = borders_passed(points, self.upwards) + borders_passed(points, self.downwards)
        return (passed - self.REACH).to(torch.int32)


class ExtremePointHeat(nn.Module):
    """A Gaussian at each extreme point (DEXTR's `make_gt`).

    Its authors then stretch the map to 0..255; it spans that already when a point lies in the crop.
    """

    pixels: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.whole = WholePixels(size)
        self.register_buffer("pixels", torch.arange(size, dtype=torch.int32), False)

    def forward(self, points: Tensor) -> Tensor:
        """Map points [B, N, 3] to heat [B, 1, S, S], 0..255."""
        return nearest_heat(self.whole(points), points[..., 2] == Label.EXTREME, self.pixels)


class InsideOutsideHeat(nn.Module):
    """A Gaussian at each click inside, and one at each corner of the box, moved outwards (IOG's `iog_points`).

    Moved corners stay within 0 and the map's size, as there.
    """

    pixels: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.whole = WholePixels(size)
        self.register_buffer("pixels", torch.arange(size, dtype=torch.int32), False)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Map points [B, N, 3] to the heat inside and outside, each [B, 1, S, S], 0..255."""
        positions, labels = self.whole(points), points[..., 2:]
        inside = nearest_heat(positions, labels[..., 0] == Label.POSITIVE, self.pixels)
        first = torch.where(labels == Label.BOX_TOP_LEFT, (positions - OUTSIDE_SHIFT).clamp(min=0), FAR)
        last = torch.where(labels == Label.BOX_BOTTOM_RIGHT, (positions + OUTSIDE_SHIFT).clamp(max=self.size), FAR)
        # The nearest of four corners is the nearer of two columns and the nearer of two rows.
        corners = torch.stack([first.amin(1), last.amin(1)], 1)[..., :2]  # [B, 2, (x, y)]
        nearest = squared(corners.unsqueeze(3) - self.pixels).amin(1)  # [B, (x, y), S]
        columns, rows = nearest.unbind(1)
        return inside, gaussian((rows.unsqueeze(2) + columns.unsqueeze(1)).unsqueeze(1))


class ClickDistances(nn.Module):
    """Distances along each axis between a map's pixels and clicks, which may lie between pixels."""

    borders: Tensor

    def __init__(self) -> None:
        super().__init__()
        steps = np.arange(COARSE_STEP, LARGEST_MAP, COARSE_STEP)
        self.register_buffer("borders", torch.from_numpy(just_below(steps)), False)

    def split(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Split x and y of points [B, N, 3] into multiples of 16, int64, and the rest, float32, both [B, N, 2]."""
        coarse = borders_passed(points, self.borders) * COARSE_STEP
        # The subtraction reads `points` itself, and numbers that bfloat16 holds: the rest is as exact as its own type.
        fine = points - coarse.to(points.dtype)
        return coarse[..., :2], fine[..., :2]


class ClickDisks(nn.Module):
    """A disk at each click: 1 up to a radius from it, 0 beyond (RITM's `DistMaps` with `use_disks`).

    A click whose coordinates are both negative is none, as there.
    """

    LABELS = (Label.POSITIVE, Label.NEGATIVE)  # the maps, in order
    window: Tensor

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.radius = radius
        self.distances = ClickDistances()
        self.register_buffer("window", torch.arange(-radius, radius + 1), False)

    def forward(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Draw points [B, N, 3] into maps [B, 2, *size] of 0 and 1.

        Only the pixels of a window around each click are computed. Those in its disk are written into the maps, all
        others into one element in front of them that is cut off, so that the number of writes stays fixed.
        """
        height, width = size
        coarse, fine = self.distances.split(points)
        window = coarse.unsqueeze(3) + fine.floor().long().unsqueeze(3) + self.window  # [B, N, (x, y), W]
        apart = squared((window - coarse.unsqueeze(3)).to(fine.dtype) - fine.unsqueeze(3))
        columns, rows = window.unsqueeze(3).unbind(2)  # [B, N, 1, W]
        across, down = apart.unsqueeze(3).unbind(2)
        rows, down = rows.transpose(2, 3), down.transpose(2, 3)  # [B, N, W, 1]
        drawn = (down + across <= self.radius**2) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)

        area = height * width
        positions = rows * width + columns + 1
        indices = torch.zeros_like(positions)
        seen = is_seen(points)
        for channel, label in enumerate(self.LABELS):
            clicked = (seen & (points[..., 2] == label)).unsqueeze(2).unsqueeze(3)
            indices = torch.where(drawn & clicked, positions + channel * area, indices)
        indices = indices.flatten(1)
        maps = points.new_zeros(points.shape[0], len(self.LABELS) * area + 1)
        maps = maps.scatter(1, indices, torch.ones_like(indices, dtype=maps.dtype))
        return maps[:, 1:].view(-1, len(self.LABELS), height, width)


class DistanceMaps(nn.Module):
    """How far the nearest click is: tanh(2 d / radius), 1 where there is none (f-BRS's `DistMaps`).

    A click whose coordinates are both negative is none, as there.
    """

    LABELS = (Label.POSITIVE, Label.NEGATIVE)  # the maps, in order

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.distances = ClickDistances()

    def forward(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Measure distances to points [B, N, 3] in maps [B, 2, *size], 0..1."""
        coarse, fine = self.distances.split(points)
        across, down = (
            squared(((torch.arange(length) - coarse[..., axis]).to(fine.dtype) - fine[..., axis]) / self.radius)
            for axis, length in ((slice(0, 1), size[1]), (slice(1, 2), size[0]))
        )  # [B, N, W] and [B, N, H]
        seen = is_seen(points)
        nearest = []
        for label in self.LABELS:
            clicked = (seen & (points[..., 2] == label)).unsqueeze(2)
            rows = torch.where(clicked, down, NOWHERE)
            nearest.append((rows.unsqueeze(3) + across.unsqueeze(2)).amin(1))
        return (torch.stack(nearest, 1).sqrt() * 2).tanh()


def nearest_heat(positions: Tensor, wanted: Tensor, pixels: Tensor) -> Tensor:
    """Draw a Gaussian at the positions [B, N, 3] that are wanted [B, N]; the higher one wins: [B, 1, S, S], 0..255."""
    across = squared(positions[..., :1] - pixels)  # [B, N, S]
    down = torch.where(wanted.unsqueeze(2), squared(positions[..., 1:2] - pixels), FAR**2)
    return gaussian((down.unsqueeze(3) + across.unsqueeze(2)).amin(1, keepdim=True))


def gaussian(squared_distances: Tensor) -> Tensor:
    """Return 255 exp(-4 ln 2 d² / width²), float32, for whole numbers d² (`make_gaussian` of DEXTR and IOG)."""
    return GAUSSIAN_HEIGHT * torch.exp(squared_distances.float() * (-4 * np.log(2) / GAUSSIAN_WIDTH**2))


def is_seen(points: Tensor) -> Tensor:
    """Find the points of [B, N, 3] with a coordinate that is not negative: bool [B, N]."""
    above = points >= 0
    return above[..., 0] | above[..., 1]


def squared(x: Tensor) -> Tensor:
    """Return x * x."""
    return x * x


def just_below(values: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the largest numbers below these, so that "greater than" means "at least"."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))
