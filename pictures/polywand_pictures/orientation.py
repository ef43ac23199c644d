"""The turn of a camera, as EXIF alone tells it, and how it is undone."""

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
    """Find the orientation, 1 to 8, in the first directory of a TIFF structure, which is what EXIF is.

    1 where there is none, or none that means anything.
    """
    at = first_directory(tiff)
    values = read_directory(tiff, at, {TAG: 1}).get(TAG) if at is not None else None
    return values[0] if values and values[0] in range(1, 9) else UPRIGHT


def orientation_of_exif(exif: memoryview) -> int:
    """As `orientation_of_tiff`, of an EXIF block with or without its name."""
    return orientation_of_tiff(exif[6:] if bytes(exif[:6]) == b"Exif\0\0" else exif)


def swaps_sides(orientation: int) -> bool:
    """Whether width becomes height."""
    return orientation in (5, 6, 7, 8)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the turn: uint8 [H, W, 3] in, [H, W, 3] or [W, H, 3] out."""
    if swaps_sides(orientation):
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _FLIPS[orientation]) if orientation in _FLIPS else pixels


def fill_upright(
    make_room: MakeRoom, size: tuple[int, int], orientation: int, fill: Callable[[Pixels], object]
) -> None:
    """Have a picture filled as it lies in its file, into room for it upright; only one that is turned is copied.

    size: width and height as it lies. fill: writes into pixels [height, width, 3].
    """
    width, height = size
    if orientation == UPRIGHT:
        fill(make_room(width, height))
        return
    turned = np.empty((height, width, 3), np.uint8)
    fill(turned)
    sides = (height, width) if swaps_sides(orientation) else (width, height)
    np.copyto(make_room(*sides), upright(turned, orientation))
