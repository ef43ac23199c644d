"""What a reader knows before it makes pixels, and how it is let in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# RGB uint8 [H, W, 3].
Pixels = NDArray[np.uint8]
# Makes memory for a picture of this width and height.
MakeRoom = Callable[[int, int], Pixels]

# Rows are turned into RGB so many pixels at a time, so that no copy of the whole picture is made on the way.
STRIP_PIXELS = 2**20
# Bytes a pixel that turning a picture upright takes.
TURN_BYTES = 6


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: width, height in pixels; and what decoding it takes besides the pixels.

    Where the camera was turned, width and height may be swapped.
    """

    width: int
    height: int
    decoder_bytes: int


# Lets the picture of this header in, or raises; returns what makes room for its pixels, which are turned upright.
Admission = Callable[[Header], MakeRoom]


class ValueRange(NamedTuple):
    """Which value of a file is black and which is white; values outside are as the nearer of both."""

    low: float
    high: float


def strips(width: int, height: int) -> list[slice]:
    """Cut so many rows of so many pixels into slices of whole rows."""
    step = max(1, STRIP_PIXELS // max(1, width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]
