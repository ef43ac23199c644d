"""Windows: which part of an image a network sees, and how points, pixels and maps get there and back.

This is written from the contract of the model repository and not from the service's code, on purpose: that both give
the same masks is what shows that neither has drifted.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_zoo.evaluation.objects import Mask

Points = NDArray[np.float64]
Map = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """Edges in whole image pixels, which may lie outside of the image; size: (height, width) of the network's input."""

    left: int
    top: int
    right: int
    bottom: int
    size: tuple[int, int]

    @property
    def area(self) -> int:
        """Image pixels."""
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per image pixel, (x, y)."""
        return self.size[1] / (self.right - self.left), self.size[0] / (self.bottom - self.top)

    def to_input(self, points: Points) -> Points:
        """Points [N, 2] (x, y) of the image (corners at integers) as those of the input (centres at integers)."""
        placed: Points = (points - (self.left, self.top)) * self.scale - 0.5
        return placed

    def to_image(self, points: Points) -> Points:
        """The way back."""
        placed: Points = (points + 0.5) / self.scale + (self.left, self.top)
        return placed

    def iou(self, other: "Window") -> float:
        """Intersection over union of what both see of the image."""
        shared = Window(
            *(max(self.left, other.left), max(self.top, other.top)),
            *(min(self.right, other.right), min(self.bottom, other.bottom)),
            self.size,
        ).area
        return shared / (self.area + other.area - shared)

    def holds(self, points: Points) -> bool:
        """Whether all points [N, 2] (x, y, image) lie inside."""
        low, high = (self.left, self.top), (self.right, self.bottom)
        return bool(((points >= low) & (points <= high)).all())


def around(
    left: float, top: float, right: float, bottom: float, fixed_size: tuple[int, int] | None, longest_side: int
) -> Window:
    """The window of whole pixels around these edges; without a fixed input size, no longer than the longest side."""
    x0, y0 = math.floor(left), math.floor(top)
    x1, y1 = max(x0 + 1, math.ceil(right)), max(y0 + 1, math.ceil(bottom))
    if fixed_size is not None:
        return Window(x0, y0, x1, y1, fixed_size)
    reduction = max(1.0, max(x1 - x0, y1 - y0) / longest_side)
    size = max(1, round((y1 - y0) / reduction)), max(1, round((x1 - x0) / reduction))
    return Window(x0, y0, x1, y1, size)


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """Where a network believes an object to be: probabilities float32 [h, w] of a window's input pixels."""

    window: Window
    probabilities: Map

    def confidence(self, threshold: float) -> float:
        """How sure it is of its mask: the mean of the probabilities above the threshold, 0 where none is."""
        inside = self.probabilities[self.probabilities > threshold]
        return float(inside.mean()) if len(inside) else 0.0


def cut(pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """What the network sees, RGB uint8 [h, w, 3]: halves by area averaging, the rest bilinear; black outside."""
    height, width = pixels.shape[:2]
    x0, y0 = min(max(window.left, 0), width), min(max(window.top, 0), height)
    x1, y1 = min(max(window.right, x0), width), min(max(window.bottom, y0), height)
    outside = (y0 - window.top, window.bottom - y1, x0 - window.left, window.right - x1)
    seen = np.pad(pixels[y0:y1, x0:x1], (outside[:2], outside[2:], (0, 0)))
    for axis in (0, 1):
        while seen.shape[axis] >= 2 * window.size[axis]:
            shape = list(seen.shape[:2])
            shape[axis] = (shape[axis] + 1) // 2
            seen = cv2.resize(seen, shape[::-1], interpolation=cv2.INTER_AREA)
    result: NDArray[np.uint8] = cv2.resize(seen, window.size[::-1], interpolation=cv2.INTER_LINEAR)
    return result


def moved(belief: Belief, window: Window) -> Map:
    """The belief in another window's input pixels, float32 [h, w], bilinear; 0 where it does not reach."""
    corners = belief.window.to_input(window.to_image(np.array([[0.0, 0.0], [1.0, 1.0]])))
    return _sampled(belief.probabilities, corners, window.size, cv2.BORDER_CONSTANT)


def to_mask(belief: Belief, threshold: float, width: int, height: int) -> Mask:
    """The image's pixels at whose centres the probability is above the threshold, bool [height, width]."""
    window, mask = belief.window, np.zeros((height, width), np.bool_)
    x0, y0 = min(max(window.left, 0), width), min(max(window.top, 0), height)
    x1, y1 = max(x0, min(window.right, width)), max(y0, min(window.bottom, height))
    if x0 == x1 or y0 == y1:
        return mask
    corners = window.to_input(np.array([[x0 + 0.5, y0 + 0.5], [x0 + 1.5, y0 + 1.5]]))
    # Between the outermost centres and the edge, the map goes on as it is there.
    sampled = _sampled(belief.probabilities, corners, (y1 - y0, x1 - x0), cv2.BORDER_REPLICATE)
    mask[y0:y1, x0:x1] = sampled > threshold
    return mask


def _sampled(values: Map, corners: Points, size: tuple[int, int], border: int) -> Map:
    """Read a map bilinearly on a grid; corners: where the grid's points (0, 0) and (1, 1) lie in the map's pixels."""
    first, step = corners[0], corners[1] - corners[0]
    grid = np.array([[step[0], 0, first[0]], [0, step[1], first[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    result: Map = cv2.warpAffine(values, grid, size[::-1], flags=flags, borderMode=border, borderValue=0)
    return result
