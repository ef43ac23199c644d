"""The orientation of an image by EXIF alone, and how to make it upright."""

from collections.abc import Callable

import cv2
import numpy as np

from polywand_pictures.directories import first_directory, read_directory
from polywand_pictures.header import MakeRoom, Pixels

# EXIF 2.32, tag 274; 1 is upright.
TAG = 0x0112
UPRIGHT = 1
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def orientation_of_tiff(tiff: memoryview) -> int:
    """Return the orientation, 1 to 8, in the first directory of a TIFF structure, such as EXIF.

    1 (upright) if there is none, or it is invalid.
    """
    at = first_directory(tiff)
    values = read_directory(tiff, at, {TAG: 1}).get(TAG) if at is not None else None
    return values[0] if values and values[0] in range(1, 9) else UPRIGHT


def orientation_of_exif(exif: memoryview) -> int:
    """Return the orientation in an EXIF block, with or without its name; as `orientation_of_tiff`."""
    return orientation_of_tiff(exif[6:] if bytes(exif[:6]) == b"Exif\0\0" else exif)


def swaps_sides(orientation: int) -> bool:
    """Return whether width and height are swapped."""
    return orientation in (5, 6, 7, 8)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Make pixels upright: uint8 [H, W, 3] to [H, W, 3] or [W, H, 3]."""
    if swaps_sides(orientation):
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _FLIPS[orientation]) if orientation in _FLIPS else pixels


def fill_upright(
    make_room: MakeRoom, size: tuple[int, int], orientation: int, fill: Callable[[Pixels], object]
) -> None:
    """Let `fill` write an image as it is in its file, and make it upright; it is copied only if that is needed.

    size: width and height in the file. fill: writes into pixels [height, width, 3].
    """
    width, height = size
    if orientation == UPRIGHT:
        fill(make_room(width, height))
        return
    turned = np.empty((height, width, 3), np.uint8)
    fill(turned)
    sides = (height, width) if swaps_sides(orientation) else (width, height)
    np.copyto(make_room(*sides), upright(turned, orientation))
