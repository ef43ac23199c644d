"""The reader: a file of any format to RGB, upright, on white where transparent."""

import math

import numpy as np

from polywand_pictures import bmp, gif, heif, jpeg, png, tiff, webp
from polywand_pictures.errors import RangeError, UnreadableError
from polywand_pictures.header import Admission, Header, MakeRoom, Pixels, ValueRange
from polywand_pictures.kinds import kind_of

# Formats of 8 bits, or whose decoders return 8 bits.
_OTHERS = {
    "JPEG": jpeg.read,
    "WEBP": webp.read,
    "BMP": bmp.read,
    "GIF": gif.read,
    "AVIF": heif.read_avif,
    "HEIC": heif.read_heic,
}


# Media types of the formats that are always read.
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif")


def media_types() -> tuple[str, ...]:
    """Return the media types of the files that are read here: "image/jpeg". AVIF and HEIC need a decoder."""
    more = (("image/avif", heif.reads_avif()), ("image/heic", heif.reads_heic()))
    return (*_MEDIA_TYPES, *(name for name, is_read in more if is_read))


def read_into(data: memoryview, admit: Admission, value_range: ValueRange | None = None) -> None:
    """Decode a file of any format to RGB uint8 [height, width, 3] in the memory that `admit` provides.

    value_range: the values that are black and white, in files with more than 8 bits.

    Raises:
        UnreadableError, TooMuchError, RangeError, and what `admit` raises
    """
    check_range(value_range)
    kind = kind_of(data)
    if kind == "PNG":
        png.read(data, admit, value_range)
    elif kind == "TIFF":
        tiff.read(data, admit, value_range)
    else:
        if value_range is not None:
            raise RangeError("the values of this file have 8 bits; a range is for more")
        _OTHERS[kind](data, admit)


def read_picture(data: bytes | memoryview, value_range: ValueRange | None = None) -> Pixels:
    """Decode a file of any format: RGB uint8 [H, W, 3], upright. For trusted files: there is no limit of size.

    Raises:
        UnreadableError, TooMuchError, RangeError
    """
    made: list[Pixels] = []

    def make_room(width: int, height: int) -> Pixels:
        made.append(np.empty((height, width, 3), np.uint8))
        return made[-1]

    def admit(header: Header) -> MakeRoom:
        if header.width < 1 or header.height < 1:
            raise UnreadableError(f"the image is {header.width} x {header.height} pixels; it must have at least one")
        return make_room

    if not len(data):
        raise UnreadableError("the image is empty")
    read_into(memoryview(data), admit, value_range)
    return made[-1]


def check_range(value_range: ValueRange | None) -> None:
    """Raise RangeError if a range is not finite or empty."""
    if value_range is None:
        return
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RangeError("both ends of a range must be finite")
    if low >= high:
        raise RangeError(f"{low:g} is not below {high:g}")
