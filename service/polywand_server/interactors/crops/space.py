"""Crop spaces: an image, and the network that its crops are for."""

import math
from dataclasses import dataclass

import numpy as np

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region, snap


@dataclass(frozen=True, slots=True)
class CropSpace:
    """The image that crops are chosen on, and the network that they are for.

    width, height: of the image, in pixels.
    fixed_size: (height, width) of the network's input; None for a network that takes any size.
    threshold: a pixel belongs to the mask where its probability is above this.
    """

    width: int
    height: int
    fixed_size: tuple[int, int] | None
    threshold: float

    def whole(self, longest_side: int) -> Region:
        """Make the region of the whole image."""
        return self.region(0, 0, self.width, self.height, longest_side)

    def region(self, left: int, top: int, right: int, bottom: int, longest_side: int) -> Region:
        """Make the region within these edges, in image pixels; longest_side: see `input_size`."""
        return snap(left, top, right, bottom, self.input_size(right - left, bottom - top, longest_side))

    def input_size(self, width: int, height: int, longest_side: int) -> tuple[int, int]:
        """Compute the (height, width) of the network's input for a crop of so many image pixels.

        longest_side: of the input of a network that takes any size; smaller crops are not enlarged.
        """
        reduction = max(1.0, max(width, height) / longest_side)
        return self.fixed_size or (max(1, round(height / reduction)), max(1, round(width / reduction)))

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        """Find the (column, row) of the pixel that a point lies in; the far edges belong to the last pixels."""
        return min(math.floor(x), self.width - 1), min(math.floor(y), self.height - 1)


def mask_box(mask: ProbabilityMap, threshold: float, smallest: int) -> Box | None:
    """Find the box of all values above a threshold, in image pixels; None where fewer than `smallest` values are."""
    inside = mask.values > threshold
    if np.count_nonzero(inside) < smallest:
        return None
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    # The outermost edges lie half an input pixel beyond the outermost centres.
    corners = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (x0, y0), (x1, y1) = mask.region.from_input(corners)
    return Box(float(x0), float(y0), float(x1), float(y1))
