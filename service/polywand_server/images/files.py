"""Image files to pixels: by OpenCV where it is quicker and as strict, by Pillow everywhere else."""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from polywand_server.errors import InvalidInputError, TooLargeError
from polywand_server.images import jpeg
from polywand_server.images.orientation import TAG, UPRIGHT, upright
from polywand_server.images.picture import Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Of one side. JPEG cannot have longer ones, and lines of a hundred million pixels are no images.
MAX_SIDE = 65_535
# Of one JPEG file: progressive ones have some ten. Each is decoded over the whole image, however few bytes it has.
MAX_SCANS = 500
# Rows are turned into RGB so many pixels at a time, so that no copy of the whole image is made on the way.
STRIP_PIXELS = 2**20
# What Pillow's readers raise on truncated and damaged files.
DAMAGE = (OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, OverflowError, struct.error, zlib.error)
_BMP_RUN_LENGTHS = (1, 2)

# Bytes a pixel of Pillow's own memory, by mode; of others 4.
_CORE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
# What readers take besides, by format (measured, rounded up), and turning.
_READER_BYTES = {"WEBP": 14, "JPEG": 9, "MPO": 9}
_OTHER_READER_BYTES = 8
_TURN_BYTES = 6

# Grey of 16 bits to grey of 8, by the full range.
_FROM_16_BITS = (np.arange(65536, dtype=np.float32) / 65535 * 255 + 0.5).astype(np.uint8)

# Pillow registers its rarer readers on demand, and then not for `open` with a list of formats.
Image.init()
# Pillow's own limit would warn below ours, and refuse what ours allows.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: width, height in pixels; and what decoding it takes besides the pixels.

    Where the camera was turned, width and height may be swapped.
    """

    width: int
    height: int
    decoder_bytes: int


# Lets the image of this header in, or raises; returns what makes room for its pixels, which are turned upright.
Admission = Callable[[Header], Callable[[int, int], Pixels]]


def check_size(field: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse images without a pixel, with too many, or with too long a side.

    Raises:
        InvalidInputError, TooLargeError
    """
    if width < 1 or height < 1:
        raise InvalidInputError(field, f"the image is {width} x {height} pixels; it must have at least one")
    if width * height > max_pixels:
        raise TooLargeError(
            field, f"the image has {width} x {height} = {width * height} pixels; this server takes at most {max_pixels}"
        )
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(field, f"the image is {width} x {height} pixels; a side may have at most {MAX_SIDE}")


def check_scans(field: str, data: memoryview) -> int:
    """Count a JPEG file's scans. Raises TooLargeError when there are too many."""
    scans = jpeg.count_scans(data, MAX_SCANS)
    if scans > MAX_SCANS:
        raise TooLargeError(field, f"the JPEG file has more than {MAX_SCANS} scans, the most that are decoded")
    return scans


def webp_header(data: memoryview) -> Header | None:
    """Read the header of a WebP file, whose reader takes memory for all pixels when it opens it; None for others.

    The container is that of RFC 9649, 2.
    """
    if bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"WEBP" or len(data) < 30:
        return None
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return Header(width, height, width * height * (4 + _READER_BYTES["WEBP"] + _TURN_BYTES))


def read_jpeg(data: NDArray[np.uint8], header: jpeg.JpegHeader) -> Pixels | None:
    """Decode a whole JPEG file by OpenCV, twice as fast as Pillow; None when it cannot.

    OpenCV fills what a truncated file lacks with grey, so the file's end must have been seen.
    """
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        return None
    return upright(pixels, header.orientation)


def read_file(file: IO[bytes], field: str, admit: Admission) -> None:
    """Decode a file of any format by Pillow, into RGB uint8 [height, width, 3] where `admit` says.

    Raises:
        InvalidInputError: it is none that can be read, or it is damaged or truncated.
        TooLargeError, and what `admit` raises
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_run_lengths(image, field)
            make_room = admit(_header(image))
            image.load()
            # Some formats tell the turn behind the pixels, and TIFF's reader has undone it by now.
            orientation = image.getexif().get(TAG, UPRIGHT)
            width, height = image.size
            if orientation == UPRIGHT:
                _fill(make_room(width, height), image)
                return
            turned = np.empty((height, width, 3), np.uint8)
            _fill(turned, image)
            pixels = upright(turned, orientation)
            np.copyto(make_room(*pixels.shape[1::-1]), pixels)
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            field, "this is not an image that can be read (JPEG, PNG, WebP, BMP or TIFF)"
        ) from error
    except DAMAGE as error:
        raise InvalidInputError(field, f"the image is damaged or truncated ({error})") from error


def _refuse_run_lengths(image: Image.Image, field: str) -> None:
    """Pillow reads BMP's run lengths in Python, byte by byte: a kilobyte of them can take minutes."""
    if image.format == "BMP" and image.info.get("compression") in _BMP_RUN_LENGTHS:
        raise InvalidInputError(field, "BMP files with run-length compression are not read: save it as PNG")


def _header(image: Image.Image) -> Header:
    width, height = image.size
    core = _CORE_BYTES.get(image.mode, 4)
    reader = _READER_BYTES.get(image.format or "", _OTHER_READER_BYTES)
    return Header(width, height, width * height * (core + reader + _TURN_BYTES))


def _fill(pixels: Pixels, image: Image.Image) -> None:
    """Write a loaded image as RGB into pixels [H, W, 3]."""
    if image.mode.startswith("I;16"):
        for rows, strip in _strips(image):
            pixels[rows] = _FROM_16_BITS[np.asarray(strip)][..., None]
        return
    if image.mode.startswith("I") or image.mode == "F":
        low, scale = _grey_range(image)
        for rows, strip in _strips(image):
            values = np.asarray(strip).astype(np.float32)
            grey = (np.nan_to_num(values, nan=low) - low) * scale
            pixels[rows] = (grey * 255 + 0.5).astype(np.uint8)[..., None]
        return
    is_transparent = image.has_transparency_data
    for rows, strip in _strips(image):
        pixels[rows] = _on_white(strip) if is_transparent else np.asarray(strip.convert("RGB"))


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Cut an image into strips of whole rows."""
    width, height = image.size
    step = max(1, STRIP_PIXELS // width)
    if step >= height:
        yield slice(0, height), image
        return
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """What is black, and one over the distance to white: 16-bit ranges are scaled by their full range, others by their
    own.
    """
    values = [np.asarray(strip) for _, strip in _strips(image)]
    low = min(float(np.nanmin(strip)) for strip in values)
    high = max(float(np.nanmax(strip)) for strip in values)
    if image.mode != "F" and low >= 0 and high <= 65535:
        return 0.0, 1 / 65535
    return low, 1 / max(high - low, 1e-12)
