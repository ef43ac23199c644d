"""Regions of interest: from image pixels to a network's input, and back. The only arithmetic on scales."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.images import Picture
from polywand_server.images.resampling import Resampling, resize, sample

# Pixels of a map at most; maps of larger regions are coarser than the image.
LARGEST_MAP = 2**20


@dataclass(frozen=True, slots=True)
class Region:
    """An axis-aligned crop of an image, and the network's input that it is resized to.

    left, top, width, height: in whole image pixels (corner convention: it spans left .. left + width); may reach
        outside the image, where pixels read as black and probabilities as 0.
    size: (height, width) of the network's input.
    resampling: how the crop becomes the input.
    margin: image pixels on each side that the network sees, but whose answer is not kept.
    """

    left: int
    top: int
    width: int
    height: int
    size: tuple[int, int]
    resampling: Resampling = Resampling.SMOOTH
    margin: int = 0

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per image pixel, (x, y)."""
        return self.size[1] / self.width, self.size[0] / self.height

    @property
    def pixel_size(self) -> float:
        """Image pixels per input pixel, the larger of both axes."""
        return max(1 / self.scale[0], 1 / self.scale[1])

    def to_input(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points [N, 2] (x, y) from image pixels (corners at integers) to input pixels (centres at integers).

        For resamplings other than SMOOTH this is the convention of the network's authors, not `from_input`'s inverse.
        """
        if self.resampling is Resampling.SMOOTH:
            result: NDArray[np.float64] = (points - (self.left, self.top)) * self.scale - 0.5
            return result
        indices = np.floor(points) - (self.left, self.top)
        return _single_towards_zero(indices * self.size[::-1] * (1 / np.array([self.width, self.height])))

    def from_input(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points [N, 2] (x, y) from input pixels (centres at integers) to image pixels (corners at integers)."""
        origin, scale, shift = self._grid()
        result: NDArray[np.float64] = (points + shift) / scale + origin
        return result

    def positions(self, other: "Region") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where another input's pixel centres lie: rows [h] and columns [w] of this input."""
        origin, scale, shift = self._grid()
        first, second = (other.from_input(np.array([[0.0, 0.0], [1.0, 1.0]])) - origin) * scale - shift
        step = second - first
        columns, rows = (first[axis] + step[axis] * np.arange(other.size[1 - axis]) for axis in (0, 1))
        return rows, columns

    def _grid(self) -> tuple[tuple[float, float], tuple[float, float], float]:
        """Return origin, scale, shift: a point's input pixels are (image pixels - origin) * scale - shift."""
        if self.resampling is not Resampling.CORNERS:
            return (self.left, self.top), self.scale, 0.5
        # A single pixel has no scale.
        steps = max(self.width - 1, 1), max(self.height - 1, 1)
        scale = max(self.size[1] - 1, 1) / steps[0], max(self.size[0] - 1, 1) / steps[1]
        return (self.left + 0.5, self.top + 0.5), scale, 0.0

    def holds(self, points: NDArray[np.float64]) -> bool:
        """Whether all points [N, 2] (x, y, image pixels) lie inside."""
        low = np.array((self.left, self.top))
        high = low + np.array((self.width, self.height))
        return bool(((points >= low) & (points <= high)).all())

    def overlap(self, other: "Region") -> float:
        """Intersection over union of both regions."""
        width = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        height = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        shared = max(0, width) * max(0, height)
        return shared / (self.width * self.height + other.width * other.height - shared)

    def overlap_by_axes(self, other: "Region") -> float:
        """The shared length over the length that both span, along x times along y."""
        shared = 1.0
        for low, side, other_low, other_side in (
            (self.left, self.width, other.left, other.width),
            (self.top, self.height, other.top, other.height),
        ):
            high, other_high = low + side, other_low + other_side
            shared *= max(0, min(high, other_high) - max(low, other_low)) / (
                max(high, other_high) - min(low, other_low)
            )
        return shared

    def inside(self, width: int, height: int) -> tuple[slice, slice]:
        """Return the rows and columns of the input whose centres lie in an image of this size."""
        low = np.ceil(self.to_input(np.zeros((1, 2))))[0]
        high = np.ceil(self.to_input(np.array([[width, height]], np.float64)))[0]
        rows = slice(max(0, int(low[1])), max(0, min(self.size[0], int(high[1]))))
        columns = slice(max(0, int(low[0])), max(0, min(self.size[1], int(high[0]))))
        return rows, columns


def _single_towards_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to single precision, towards zero, so that truncation to integers gives the same as for double."""
    single = values.astype(np.float32)
    return np.where(np.abs(single) > np.abs(values), np.nextafter(single, np.float32(0)), single).astype(np.float64)


def snap(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Region:
    """Make the smallest region around these edges that lies on whole pixels of the pyramid level it will be read from.

    The level is the coarsest that still has at least the input's resolution, so the edges move by less than a pixel of
    the input.
    """
    reduction = min((right - left) / size[1], (bottom - top) / size[0])
    step = 2 ** max(0, int(math.log2(max(reduction, 1.0))))
    x0, y0 = math.floor(left / step) * step, math.floor(top / step) * step
    x1, y1 = math.ceil(right / step) * step, math.ceil(bottom / step) * step
    return Region(x0, y0, max(x1 - x0, step), max(y1 - y0, step), size)


def crop_into(target: NDArray[np.uint8], picture: Picture, region: Region) -> None:
    """Cut a region out of an image and resize it into RGB uint8 [h, w, 3] of the region's size; black outside."""
    if region.resampling is not Resampling.SMOOTH:
        window = _window(picture.levels[0], region.left, region.top, region.width, region.height)
        resize(window, target, region.resampling)
        return
    level = _coarsest_level(picture, region)
    step = 2**level
    window = _window(
        picture.levels[level], region.left // step, region.top // step, region.width // step, region.height // step
    )
    # Bilinear resizing to a half is the average of pairs, and takes a tenth of the time of OpenCV's area averaging.
    for axis in (0, 1):
        while window.shape[axis] >= 2 * region.size[axis]:
            half = [window.shape[1], window.shape[0]]
            half[1 - axis] = (half[1 - axis] + 1) // 2
            window = cv2.resize(window, half, interpolation=cv2.INTER_LINEAR)
    cv2.resize(window, region.size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)


def _coarsest_level(picture: Picture, region: Region) -> int:
    """The coarsest level on whose pixels the region lies exactly, and which is not coarser than the input."""
    reduction = min(region.width / region.size[1], region.height / region.size[0])
    edges = math.gcd(region.left, region.top, region.width, region.height)
    level = 0
    while level + 1 < len(picture.levels) and 2 ** (level + 1) <= reduction and edges % 2 ** (level + 1) == 0:
        level += 1
    return level


def _window(pixels: NDArray[np.uint8], left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    bounds_height, bounds_width = pixels.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, bounds_width), min(top + height, bounds_height)
    if x0 >= x1 or y0 >= y1:
        return np.zeros((height, width, 3), np.uint8)
    inner = pixels[y0:y1, x0:x1]
    if inner.shape[:2] == (height, width):
        return inner
    padded: NDArray[np.uint8] = cv2.copyMakeBorder(
        inner, y0 - top, top + height - y1, x0 - left, left + width - x1, cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )
    return padded


@dataclass(frozen=True, slots=True)
class ProbabilityMap:
    """Probabilities that pixels belong to an object, per input pixel of a region: float32 [h, w] in 0..1, 0 outside.

    region: of SMOOTH resampling. network_region: the region that the network saw; None where it is the same.
    """

    region: Region
    values: NDArray[np.float32]
    network_region: Region | None = None

    @property
    def seen(self) -> Region:
        """The region that the network saw for it."""
        return self.network_region or self.region

    def resampled(self, region: Region) -> NDArray[np.float32]:
        """Bring the map onto another region's input, float32 [h, w], bilinear; 0 where this one does not reach."""
        if region == self.region:
            return self.values
        if region.resampling is not Resampling.SMOOTH:
            rows, columns = self.region.positions(region)
            return sample(np.pad(self.values, 1), rows + 1, columns + 1)
        # Where the target's first and second pixel centres lie, in this map's pixels.
        first, second = self.region.to_input(region.from_input(np.array([[0.0, 0.0], [1.0, 1.0]])))
        step = second - first
        warped: NDArray[np.float32] = cv2.warpAffine(
            self.values,
            np.array([[step[0], 0, first[0]], [0, step[1], first[1]]]),
            region.size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        return warped


def map_size(width: int, height: int) -> tuple[int, int]:
    """Return the (height, width) of a map of so many image pixels: the same, or reduced to LARGEST_MAP pixels."""
    reduction = max(1.0, math.sqrt(width * height / LARGEST_MAP))
    return max(1, round(height / reduction)), max(1, round(width / reduction))


def from_network(values: NDArray[np.float32], seen: Region) -> ProbabilityMap:
    """Make a map of a network's answer on a region, float32 [h, w] of its input's size."""
    if seen.resampling is Resampling.SMOOTH:
        return ProbabilityMap(seen, values)
    width, height = seen.width - 2 * seen.margin, seen.height - 2 * seen.margin
    kept = Region(seen.left + seen.margin, seen.top + seen.margin, width, height, map_size(width, height))
    rows, columns = seen.positions(kept)
    return ProbabilityMap(kept, sample(values, rows, columns, cubic=seen.resampling is not Resampling.CORNERS), seen)
