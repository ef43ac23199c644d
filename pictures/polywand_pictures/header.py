"""What a file's header says, and how decoding is admitted before pixels are allocated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# RGB uint8 [H, W, 3].
Pixels = NDArray[np.uint8]
# Allocates memory for an image of this width and height.
MakeRoom = Callable[[int, int], Pixels]

# Rows are converted to RGB in strips of this many pixels, without a copy of the whole image.
STRIP_PIXELS = 2**20
# Memory for orienting an image upright, in bytes per pixel.
TURN_BYTES = 6


@dataclass(frozen=True, slots=True)
class Header:
    """A file's width and height in pixels, and the memory that its decoder needs besides the pixels.

    Width and height are those before or after orientation.
    """

    width: int
    height: int
    decoder_bytes: int


# Admits the image of this header, or raises; returns the allocator of its upright pixels.
Admission = Callable[[Header], MakeRoom]


class ValueRange(NamedTuple):
    """The values of a file that are black and white; values outside are clipped."""

    low: float
    high: float


def strips(width: int, height: int) -> list[slice]:
    """Return slices of rows, of about STRIP_PIXELS pixels each."""
    step = max(1, STRIP_PIXELS // max(1, width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]
