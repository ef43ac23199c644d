"""Prompt maps of the wand networks: from a list of points to the picture of it that a network sees."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.points import Label, borders_passed

MAP_NAMES = ("positive", "negative", "extreme", "box", "previous")  # the channels, in order
FINE_MAP_NAMES = (*MAP_NAMES, "diamond")  # of the second generation
FAR = 1e4  # pixels, beyond every point
DIAMOND_RAMPS = 16  # how many ramps of a diamond's edge fit beside one another in a map


class PromptMaps(nn.Module):
    """Draws points as disks, a box as a filled rectangle, and puts the previous mask beside them.

    Extreme points bring the box around them: that is how the networks learned them.

    The maps are those that the networks were trained on, pixel for pixel: `cv2.circle(map, pixel, radius, 1, -1)` for
    a point and `map[top:bottom, left:right] = 1` for a box whose corners were rounded as Python rounds.

    A coordinate is compared with the borders of all pixels and then counts as an integer: the number of borders that
    it has passed. That costs little, it clips what lies outside, and it stays exact where OpenVINO computes in
    bfloat16, because there a comparison reads the graph's inputs and constants as they are. Arithmetic would not: 8
    bits cannot separate pixel 256 from pixel 257.

    Disks are written pixel by pixel into a canvas that is larger than the map by what can stick out; where they overlap
    they write the same value, so their order does not matter. Rows that are no clicks are drawn too, in a corner of the
    canvas that is cut off, so that the number of points stays fixed.
    """

    DISK_LABELS = (Label.POSITIVE, Label.NEGATIVE, Label.EXTREME)  # the first channels of the maps
    point_borders: Tensor
    box_borders: Tensor
    stamp: Tensor
    pixels: Tensor

    def __init__(self, size: int, radius: int) -> None:
        """Prepare maps of size x size pixels with disks of the radius in pixels."""
        super().__init__()
        self.size = size
        self.margin = 2 * radius + 1  # a disk just outside the map, drawn whole
        self.side = size + 2 * self.margin
        disk = disk_pixels(radius)
        self.register_buffer("point_borders", torch.from_numpy(point_borders(size, radius)), persistent=False)
        self.register_buffer("box_borders", torch.from_numpy(box_borders(size)), persistent=False)
        self.register_buffer("stamp", torch.from_numpy(disk @ [self.side, 1]), persistent=False)
        self.register_buffer("pixels", torch.arange(size), persistent=False)

    def forward(self, points: Tensor, previous: Tensor) -> Tensor:
        """Draw points [B, N, 3] (x, y, label; pixel centres at integers) beside previous [B, 1, S, S]: [B, 5, S, S]."""
        return torch.cat([self.disks(points), self.box(points), previous], dim=1)

    def disks(self, points: Tensor) -> Tensor:
        """Draw the points [B, N, 3] of each disk label into a map of its own: [B, 3, S, S] of 0 and 1."""
        passed = borders_passed(points, self.point_borders)
        first = passed[..., 1] * self.side + passed[..., 0]  # of the disk's bounding square, in one flat map
        corner = torch.zeros_like(first)
        for channel, label in enumerate(self.DISK_LABELS):
            corner = torch.where(points[..., 2] == label, first + channel * self.side**2, corner)
        indices = (corner.unsqueeze(-1) + self.stamp).flatten(1)
        canvas = points.new_zeros(points.shape[0], len(self.DISK_LABELS) * self.side**2)
        canvas = canvas.scatter(1, indices, torch.ones_like(indices, dtype=canvas.dtype))
        inside = slice(self.margin, self.margin + self.size)
        return canvas.view(-1, len(self.DISK_LABELS), self.side, self.side)[..., inside, inside]

    def box(self, points: Tensor) -> Tensor:
        """Fill the box among the points [B, N, 3], or that of its extreme points: [B, 1, S, S] of 0 and 1.

        Without both corners nothing is filled.
        """
        label = points[..., 2:]
        edges = borders_passed(points, self.box_borders)[..., :2]
        is_extreme = label == Label.EXTREME
        start = torch.where((label == Label.BOX_TOP_LEFT) | is_extreme, edges, self.size).amin(1)  # [B, 2]
        stop = torch.where((label == Label.BOX_BOTTOM_RIGHT) | is_extreme, edges, 0).amax(1)
        inside = (self.pixels >= start.unsqueeze(-1)) & (self.pixels < stop.unsqueeze(-1))  # [B, 2, S]
        columns, rows = inside.unbind(1)
        return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).unsqueeze(1).to(points.dtype)


class FinePromptMaps(PromptMaps):
    """The maps of the second generation: extreme points bring the diamond between them as well.

    The diamond is the only map that is arithmetic of coordinates. In bfloat16 its edge may be off by two pixels, which
    is a twelfth of the ramp that it is drawn with.
    """

    grid: Tensor

    def __init__(self, size: int, radius: int) -> None:
        super().__init__(size, radius)
        self.register_buffer("grid", torch.arange(size, dtype=torch.float32), persistent=False)

    def forward(self, points: Tensor, previous: Tensor) -> Tensor:
        """Draw points [B, N, 3] (x, y, label; pixel centres at integers) beside previous [B, 1, S, S]: [B, 6, S, S]."""
        return torch.cat([super().forward(points, previous), self.diamond(points)], dim=1)

    def diamond(self, points: Tensor) -> Tensor:
        """Draw the diamond between the extreme points among [B, N, 3], nothing where there are none: [B, 1, S, S]."""
        extreme = points[..., 2:] == Label.EXTREME
        positions = points[..., :2]
        first = torch.where(extreme, positions, FAR).argmin(1)  # [B, 2]: the leftmost and the topmost
        last = torch.where(extreme, positions, -FAR).argmax(1)
        order = torch.cat([first, last], dim=1)  # [B, 4], clockwise from the leftmost
        corners = torch.stack([points[..., axis].gather(1, order) for axis in (0, 1)], dim=-1)  # [B, 4, 2]
        along = torch.cat([corners[:, 1:], corners[:, :1]], dim=1) - corners
        lengths = along.square().sum(-1, keepdim=True).sqrt()
        is_edge = lengths >= 1
        along = along / lengths.clamp(min=1)
        (x, y), (dx, dy) = corners.unsqueeze(-2).unbind(-1), along.unsqueeze(-2).unbind(-1)  # each [B, 4, 1]
        below = torch.where(is_edge, dx * (self.grid - y), FAR)  # [B, 4, S]
        beside = torch.where(is_edge, dy * (self.grid - x), 0)
        depth = (below.unsqueeze(-1) - beside.unsqueeze(-2)).amin(1, keepdim=True)
        drawn = (0.5 + depth * (DIAMOND_RAMPS / self.size)).clamp(0, 1)
        return drawn * extreme.any(1, keepdim=True).unsqueeze(-1).to(drawn.dtype)


def diamond(extremes: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Draw the diamond between extreme points [N, 2] as `FinePromptMaps` does: [S, S], 1 inside, 0 outside.

    Its edges are ramps of `size / DIAMOND_RAMPS` pixels, with 0.5 where the edge is: it is a hint and no outline.
    """
    corners = extremes[[*extremes.argmin(axis=0), *extremes.argmax(axis=0)]]
    along = np.roll(corners, -1, axis=0) - corners
    lengths = np.hypot(along[:, 0], along[:, 1])
    pixels = np.arange(size, dtype=np.float32)
    depth = np.full((size, size), np.inf, np.float32)
    for (x, y), (dx, dy), length in zip(corners, along, lengths, strict=True):
        if length >= 1:
            np.minimum(depth, (dx * (pixels[:, None] - y) - dy * (pixels - x)) / length, out=depth)
    return np.clip(0.5 + depth * (DIAMOND_RAMPS / size), 0, 1)


def point_borders(size: int, radius: int) -> NDArray[np.float32]:
    """List the values above which a coordinate falls into the next pixel, for all pixels whose disk shows.

    Coordinate c falls into pixel floor(c + 0.5), so pixel p begins at p - 0.5, itself included.
    The number of borders passed is the disk's first pixel in a canvas with a margin of 2 * radius + 1.
    """
    first = np.arange(-radius, size + radius + 1, dtype=np.float32) - np.float32(0.5)
    return np.nextafter(first, np.float32(-np.inf))


def box_borders(size: int) -> NDArray[np.float32]:
    """List the values above which a coordinate rounds to the next of the pixel edges 1..size.

    Coordinate c lies c + 0.5 pixels from the map's edge, which rounds half to even: 0.5 to 0 and 1.5 to 2.
    """
    edge = np.arange(1, size + 1)
    half = (edge - 1).astype(np.float32)
    return np.where(edge % 2 == 0, np.nextafter(half, np.float32(-np.inf)), half)


def disk_pixels(radius: int) -> NDArray[np.int64]:
    """List the (row, column) [M, 2] of the pixels of OpenCV's disk within its bounding square."""
    square = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
    cv2.circle(square, (radius, radius), radius, 1, -1)
    return np.argwhere(square)
