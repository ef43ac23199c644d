"""Windows onto a photo, chosen as the service's zoom-in chooses its crops."""

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from polywand_zoo.wand.training.dataset import Pixels

EXPANSION = 1.7
MIN_FRACTION = 0.25
MAX_ASPECT = 1.7
CLICK_MARGIN = 0.06
WHOLE_ABOVE = 0.85
BOX_MARGIN = 0.18
SMALLEST = 24

Number = TypeVar("Number", bound=np.generic)
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a photo: left, top, right, bottom in whole pixels (corner convention)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def scale(self, size: int) -> tuple[float, float]:
        """Input pixels per photo pixel, (x, y), for a square input."""
        return size / (self.right - self.left), size / (self.bottom - self.top)

    def of(self, pixels: NDArray[Number]) -> NDArray[Number]:
        """Cut the window out of an image [h, w, …]."""
        return pixels[self.top : self.bottom, self.left : self.right]

    def resized(self, image: Pixels, size: int) -> Pixels:
        """Cut out and resize to a square; averages where it shrinks much, as the service does."""
        shrinks = max(self.shape) > 1.3 * size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized: Pixels = cv2.resize(self.of(image), (size, size), interpolation=how)
        return resized

    def resized_mask(self, mask: Pixels, size: int) -> Pixels:
        """Cut out of a mask [h, w] of 0 and 1 and resize: where most of a pixel is inside, 1."""
        soft = cv2.resize(self.of(mask) * np.uint8(255), (size, size), interpolation=cv2.INTER_LINEAR)
        inside: Pixels = (soft > 127).astype(np.uint8)
        return inside


def whole(shape: tuple[int, int]) -> Window:
    """The whole photo of (height, width)."""
    return Window(0, 0, shape[1], shape[0])


def around(
    box: Box, shape: tuple[int, int], expansion: float, smallest: float, clicks: NDArray[np.float64] | None = None
) -> Window:
    """The window around a box, within a photo of (height, width), that also holds clicks [N, 2]."""
    width, height = max((box[2] - box[0]) * expansion, smallest), max((box[3] - box[1]) * expansion, smallest)
    width, height = max(width, height / MAX_ASPECT), max(height, width / MAX_ASPECT)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    low, high = np.array([x - width / 2, y - height / 2]), np.array([x + width / 2, y + height / 2])
    if clicks is not None and len(clicks):
        margin = CLICK_MARGIN * max(width, height)
        low, high = np.minimum(low, clicks.min(axis=0) - margin), np.maximum(high, clicks.max(axis=0) + margin)
    left, top = (int(v) for v in np.floor(np.maximum(low, 0)))
    right, bottom = (int(v) for v in np.ceil(np.minimum(high, shape[::-1])))
    if (right - left) * (bottom - top) > WHOLE_ABOVE * shape[0] * shape[1]:
        return whole(shape)
    return Window(left, top, right, bottom)


def random_object_window(box: Box, shape: tuple[int, int], random: Generator) -> Window:
    """A window around what a mask so far has of the object, or has too much; it holds the whole object's box."""
    width, height = box[2] - box[0], box[3] - box[1]
    expansion = float(np.exp(random.uniform(np.log(1.15), np.log(3.2))))
    aspect = float(np.exp(random.uniform(-0.25, 0.25)))
    side_x = max(width * expansion * aspect, 1.05 * width, 48)
    side_y = max(height * expansion / aspect, 1.05 * height, 48)
    side_x, side_y = max(side_x, side_y / MAX_ASPECT), max(side_y, side_x / MAX_ASPECT)
    x = (box[0] + box[2]) / 2 + random.uniform(-0.45, 0.45) * (side_x - width)
    y = (box[1] + box[3]) / 2 + random.uniform(-0.45, 0.45) * (side_y - height)
    return _within(x - side_x / 2, y - side_y / 2, x + side_x / 2, y + side_y / 2, shape)


def random_near_window(x: float, y: float, shape: tuple[int, int], random: Generator) -> Window:
    """A window around a first click at (x, y), whatever of the object is in it."""
    half = random.uniform(0.4, 0.6) * max(shape) / 2
    return _within(x - half, y - half, x + half, y + half, shape)


def random_part_window(x: float, y: float, box: Box, shape: tuple[int, int], random: Generator) -> Window:
    """A window around a mask so far that has only a part of the object, one with the point (x, y)."""
    sides = random.uniform(0.3, 0.9, 2) * (box[2] - box[0], box[3] - box[1])
    x0, y0 = np.array([x, y]) - random.uniform(0.2, 0.8, 2) * sides
    part = max(x0, box[0]), max(y0, box[1]), min(x0 + sides[0], box[2]), min(y0 + sides[1], box[3])
    return around(part, shape, EXPANSION, max(MIN_FRACTION * min(shape), 48), np.array([[x, y]]))


def random_box_window(box: Box, shape: tuple[int, int], random: Generator) -> Window:
    """A window around the box of a prompt, with about the service's margin."""
    margin = BOX_MARGIN if random.random() < 0.5 else random.uniform(0.1, 0.28)
    return around(box, shape, 1 + 2 * margin, SMALLEST)


def _within(left: float, top: float, right: float, bottom: float, shape: tuple[int, int]) -> Window:
    return Window(
        int(max(0, np.floor(left))),
        int(max(0, np.floor(top))),
        int(min(shape[1], np.ceil(right))),
        int(min(shape[0], np.ceil(bottom))),
    )


def mask_box(mask: NDArray[np.generic]) -> Box:
    """The box of what is not zero in [h, w]; there has to be something."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
