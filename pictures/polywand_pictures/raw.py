"""Raw pixels to RGB: the same picture as of a PNG file with the same values."""

from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polywand_pictures import pillow
from polywand_pictures.errors import RangeError
from polywand_pictures.header import Pixels, ValueRange, strips
from polywand_pictures.ranges import scale_of


class PixelFormat(StrEnum):
    """The layout of raw pixels, row by row from the top, without padding."""

    RGB8 = "RGB8"
    BGR8 = "BGR8"
    GRAY8 = "GRAY8"
    # The last byte is opacity, not premultiplied.
    RGBA8 = "RGBA8"
    # The lower byte first.
    GRAY16 = "GRAY16"

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel."""
        return _PIXEL_BYTES[self]


_PIXEL_BYTES = {
    PixelFormat.RGB8: 3,
    PixelFormat.BGR8: 3,
    PixelFormat.GRAY8: 1,
    PixelFormat.RGBA8: 4,
    PixelFormat.GRAY16: 2,
}


@dataclass(frozen=True, slots=True)
class RawPixels:
    """Raw pixels of a size. data: exactly width * height * format.pixel_bytes bytes."""

    data: bytes | memoryview
    width: int
    height: int
    format: PixelFormat

    @property
    def expected_bytes(self) -> int:
        """How many bytes `data` must have."""
        return self.width * self.height * self.format.pixel_bytes


def check_raw_range(layout: PixelFormat, value_range: ValueRange | None) -> None:
    """Raise RangeError if a range is given for a format of 8 bits."""
    if value_range is not None and layout is not PixelFormat.GRAY16:
        raise RangeError(f"{layout} pixels have 8 bits; a range is for more")


def read_raw(raw: RawPixels, value_range: ValueRange | None = None) -> Pixels:
    """Convert to RGB uint8 [H, W, 3], on white where transparent; RGB8 is not copied.

    value_range: the values that are black and white, of GRAY16; see `ranges`.
    """
    match raw.format:
        case PixelFormat.RGB8:
            return _bytes(raw, 3)
        case PixelFormat.BGR8:
            return np.asarray(cv2.cvtColor(_bytes(raw, 3), cv2.COLOR_BGR2RGB), np.uint8)
        case PixelFormat.GRAY8:
            return np.asarray(cv2.cvtColor(_bytes(raw, 1), cv2.COLOR_GRAY2RGB), np.uint8)
        case PixelFormat.RGBA8:
            return _on_white(raw)
        case PixelFormat.GRAY16:
            return _scaled(raw, value_range)


def _bytes(raw: RawPixels, channels: int) -> NDArray[np.uint8]:
    return np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.width, channels)


def _on_white(raw: RawPixels) -> Pixels:
    pixels = np.empty((raw.height, raw.width, 3), np.uint8)
    pillow.fill(pixels, Image.fromarray(_bytes(raw, 4)))
    return pixels


def _scaled(raw: RawPixels, value_range: ValueRange | None) -> Pixels:
    values = np.frombuffer(raw.data, "<u2").reshape(raw.height, raw.width, 1)
    parts = strips(raw.width, raw.height)
    scale = scale_of((values[rows] for rows in parts), value_range)
    pixels = np.empty((raw.height, raw.width, 3), np.uint8)
    for rows in parts:
        pixels[rows] = scale.to_8_bits(values[rows])
    return pixels
