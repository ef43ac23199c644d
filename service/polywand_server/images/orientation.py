"""The turn of a camera, as EXIF tells it, and how it is undone."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

# EXIF 2.32, tag 274; 1 is upright.
TAG = 0x0112
UPRIGHT = 1
# Entries of a directory that are looked through; an honest one has some dozen.
MAX_ENTRIES = 512
# Bytes of a number, by the type of its entry: SHORT, LONG.
_SIZES = {3: 2, 4: 4}
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def orientation_of_tiff(tiff: memoryview) -> int:
    """Find the orientation in the first directory of a TIFF structure, which is what EXIF is; 1 where there is none."""
    order: Literal["little", "big"] = "little" if bytes(tiff[:2]) == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    directory = number(4, 4)
    for index in range(min(number(directory, 2), MAX_ENTRIES)):
        entry = directory + 2 + 12 * index
        if number(entry, 2) == TAG and number(entry + 2, 2) in _SIZES:
            return number(entry + 8, _SIZES[number(entry + 2, 2)])
    return UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether width becomes height."""
    return orientation in (5, 6, 7, 8)


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo the turn: uint8 [H, W, 3] in, [H, W, 3] or [W, H, 3] out."""
    if swaps_sides(orientation):
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _FLIPS[orientation]) if orientation in _FLIPS else pixels
