"""Pictures: decoded images with their pyramid of halves, and the sources that they are decoded from."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from polywand_pictures import Pixels, RawPixels, ValueRange

# No crop reads a level whose longest side is smaller.
SMALLEST_LEVEL_SIDE = 256


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file's bytes.

    field: the path of this field in the request, for errors. value_range: the values that become black and white, for
    files with more than 8 bits; None is the reader's default. range_field: its path.
    """

    data: bytes | memoryview
    field: str
    value_range: ValueRange | None = None
    range_field: str = "value_range"


@dataclass(frozen=True, slots=True)
class RawImage:
    """Raw pixels; the other fields are those of `EncodedImage`."""

    pixels: RawPixels
    field: str
    value_range: ValueRange | None = None
    range_field: str = "value_range"

    @property
    def data(self) -> bytes | memoryview:
        """The pixels' bytes."""
        return self.pixels.data


@dataclass(frozen=True, slots=True)
class ImageDigest:
    """An image that was sent before.

    digest: 32 bytes, see `digests`. value_range: the one that it was sent with; range_field: its path in the request.
    """

    digest: bytes
    field: str
    value_range: ValueRange | None = None
    range_field: str = "value_range"


SentImage = EncodedImage | RawImage
ImageSource = SentImage | ImageDigest


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Picture:
    """A decoded image.

    levels: RGB uint8 [H, W, 3]; each level is half of the one before (rounded up), by area averaging. Pixel (c, r) of
        level k covers 2^k by 2^k pixels of the image, so that a crop that is much larger than the network's input
        costs no more than a small one.
    """

    levels: tuple[Pixels, ...]

    @property
    def width(self) -> int:
        """Pixels, after EXIF orientation."""
        return int(self.levels[0].shape[1])

    @property
    def height(self) -> int:
        """Pixels, after EXIF orientation."""
        return int(self.levels[0].shape[0])

    @property
    def nbytes(self) -> int:
        """Memory that the levels take."""
        return sum(level.nbytes for level in self.levels)


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the (width, height) of all levels of an image of this size."""
    sizes = [(width, height)]
    while max(width, height) >= 2 * SMALLEST_LEVEL_SIDE:
        width, height = (width + 1) // 2, (height + 1) // 2
        sizes.append((width, height))
    return sizes


def pyramid_bytes(width: int, height: int) -> int:
    """Return the bytes that the levels of an image of this size take."""
    return sum(level_width * level_height * 3 for level_width, level_height in level_sizes(width, height))


def levels_in(memory: Pixels, width: int, height: int) -> tuple[Pixels, ...]:
    """Lay out the levels of an image of this size, one after another, in uint8 [pyramid_bytes]; views."""
    levels, start = [], 0
    for level_width, level_height in level_sizes(width, height):
        nbytes = level_width * level_height * 3
        levels.append(memory[start : start + nbytes].reshape(level_height, level_width, 3))
        start += nbytes
    return tuple(levels)


def fill_halves(levels: tuple[Pixels, ...]) -> None:
    """Compute each level but the first from the one before, in place."""
    for last, half in pairwise(levels):
        height, width = last.shape[:2]
        # An odd last row or column counts twice, so that every pixel of the half is an average of four.
        even = (
            cv2.copyMakeBorder(last, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            if (height % 2 or width % 2)
            else last
        )
        cv2.resize(even, half.shape[1::-1], dst=half, interpolation=cv2.INTER_AREA)


def part_of(picture: Picture, left: int, top: int, width: int, height: int) -> Picture:
    """Make a picture of a part of another, whose memory it shares; as if the part had been decoded alone.

    left, top, width, height: whole pixels, inside. Levels on whose pixels the part does not lie are computed.
    """
    right, bottom = left + width, top + height
    levels = [picture.levels[0][top:bottom, left:right]]
    for level, (level_width, level_height) in enumerate(level_sizes(width, height)[1:], 1):
        step = 2**level
        # The last pixels of a level are smaller where the image's edge is not a multiple of the step.
        ends_there = (right % step == 0 or right == picture.width) and (bottom % step == 0 or bottom == picture.height)
        if left % step == 0 and top % step == 0 and ends_there:
            x, y = left // step, top // step
            levels.append(picture.levels[level][y : y + level_height, x : x + level_width])
        else:
            levels.append(np.empty((level_height, level_width, 3), np.uint8))
            fill_halves((levels[-2], levels[-1]))
    return Picture(tuple(levels))


def picture_of(pixels: Pixels) -> Picture:
    """Make a picture of RGB pixels uint8 [H, W, 3]; they are not copied."""
    height, width = pixels.shape[:2]
    sizes = level_sizes(width, height)[1:]
    levels = (pixels, *(np.empty((level_height, level_width, 3), np.uint8) for level_width, level_height in sizes))
    fill_halves(levels)
    return Picture(levels)
