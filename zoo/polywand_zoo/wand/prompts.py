"""Prompt maps of the wand networks: from a list of points to the picture of it that a network sees."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.points import Label, borders_passed

MAP_NAMES = ("positive", "negative", "extreme", "box", "previous")  # the channels, in order


class PromptMaps(nn.Module):
    """Draws points as disks, a box as a filled rectangle, and puts the previous mask beside them.

    The maps are those that the networks were trained on, pixel for pixel: `cv2.circle(map, pixel, radius, 1, -1)` for
    a point and `map[top:bottom, left:right] = 1` for a box whose corners were rounded as Python rounds.

    A coordinate is compared with the borders of all pixels and then counts as an integer: the number of borders that
    it has passed. That costs little, it clips what lies outside, and it stays exact where OpenVINO computes in
    bfloat16, because there a comparison reads the graph's inputs and constants as they are. Arithmetic would not: 8
    bits cannot tell pixel 256 from pixel 257.

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
        """Fill the box among the points [B, N, 3]; without both corners nothing is filled: [B, 1, S, S] of 0 and 1."""
        label = points[..., 2:]
        edges = borders_passed(points, self.box_borders)[..., :2]
        start = torch.where(label == Label.BOX_TOP_LEFT, edges, self.size).amin(1)  # [B, 2]
        stop = torch.where(label == Label.BOX_BOTTOM_RIGHT, edges, 0).amax(1)
        inside = (self.pixels >= start.unsqueeze(-1)) & (self.pixels < stop.unsqueeze(-1))  # [B, 2, S]
        columns, rows = inside.unbind(1)
        return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).unsqueeze(1).to(points.dtype)


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
