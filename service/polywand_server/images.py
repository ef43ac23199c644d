"""Images: checked by their header, decoded once, held as RGB with a pyramid of halves."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from polywand_server.errors import InvalidInputError, TooLargeError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Below this longest side a further half would not be read by any crop.
SMALLEST_LEVEL_SIDE = 256
JPEG_END = b"\xff\xd9"
EXIF_ORIENTATION = 0x0112

# What Pillow's readers raise on truncated and damaged files.
_DAMAGE = (OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, OverflowError, struct.error, zlib.error)

Pixels = NDArray[np.uint8]
# Lets an image of this width and height in, or raises.
Admission = Callable[[int, int], None]

# Pillow registers its rarer readers on demand, and then not for `open` with a list of formats.
Image.init()
# Pillow's own limit would warn below ours, and refuse what ours allows.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file's bytes. field: the path of this field in the request, for errors."""

    data: bytes
    field: str


@dataclass(frozen=True, slots=True)
class RawImage:
    """Pixels as they are, RGB8, row by row. field: the path of this field in the request, for errors."""

    data: bytes
    width: int
    height: int
    field: str


ImageSource = EncodedImage | RawImage


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


def decode_image(
    source: ImageSource, max_bytes: int, max_pixels: int, reserve: Callable[[int], None] = lambda _: None
) -> Picture:
    """Decode an image after checking its size; takes from a millisecond to a second, so keep it off the event loop.

    reserve: called with the bytes that the picture will take, before any pixel is decoded; what it raises is raised.

    Raises:
        InvalidInputError: not an image that can be read, truncated, or without a pixel.
        TooLargeError: over max_bytes or max_pixels, which is known before any pixel is decoded.
    """
    if len(source.data) > max_bytes:
        raise TooLargeError(
            source.field, f"the image has {len(source.data)} bytes; this server takes at most {max_bytes}"
        )

    def admit(width: int, height: int) -> None:
        _check_pixels(source.field, width, height, max_pixels)
        reserve(_pyramid_bytes(width, height))

    pixels = _raw_pixels(source, admit) if isinstance(source, RawImage) else _decode(source, admit)
    return Picture(_pyramid(pixels))


def _check_pixels(field: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise InvalidInputError(field, f"the image is {width} x {height} pixels; it must have at least one")
    if width * height > max_pixels:
        raise TooLargeError(
            field, f"the image has {width} x {height} = {width * height} pixels; this server takes at most {max_pixels}"
        )


def _raw_pixels(source: RawImage, admit: Admission) -> Pixels:
    admit(source.width, source.height)
    expected = source.width * source.height * 3
    if len(source.data) != expected:
        raise InvalidInputError(
            f"{source.field}.data",
            f"{source.width} x {source.height} RGB8 pixels are {expected} bytes, and {len(source.data)} came",
        )
    return np.frombuffer(source.data, np.uint8).reshape(source.height, source.width, 3)


def _decode(source: EncodedImage, admit: Admission) -> Pixels:
    if not source.data:
        raise InvalidInputError(source.field, "the image is empty")
    try:
        # Reads the header only; Pillow's own limit warns, ours decides.
        with Image.open(io.BytesIO(source.data), formats=FORMATS) as image:
            admit(*image.size)
            return _decode_whole_jpeg(source.data, image) if _is_whole_jpeg(source.data, image) else _to_rgb(image)
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            source.field, "this is not an image that can be read (JPEG, PNG, WebP, BMP or TIFF)"
        ) from error
    except _DAMAGE as error:
        raise InvalidInputError(source.field, f"the image is damaged or truncated ({error})") from error


def _is_whole_jpeg(data: bytes, image: Image.Image) -> bool:
    """Whether OpenCV may decode it: twice as fast as Pillow, but it fills what a truncated file lacks with grey."""
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and data[-2:] == JPEG_END


def _decode_whole_jpeg(data: bytes, image: Image.Image) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return _to_rgb(image)
    return _upright(pixels, image.getexif().get(EXIF_ORIENTATION, 1))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the camera's rotation (EXIF 2.32, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    return cv2.flip(pixels, flips[orientation]) if orientation in flips else pixels


def _to_rgb(image: Image.Image) -> Pixels:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_rgb(np.asarray(image), image.mode)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"), np.uint8)


def _grey_to_rgb(values: NDArray[np.generic], mode: str) -> Pixels:
    """Grey of more than 8 bits: 16-bit ranges are scaled by their full range, floats by their own."""
    grey = values.astype(np.float32)
    if mode == "F" or grey.max(initial=0.0) > 65535 or grey.min(initial=0.0) < 0:
        low, high = float(np.nanmin(grey)), float(np.nanmax(grey))
        grey = (np.nan_to_num(grey, nan=low) - low) / max(high - low, 1e-12)
    else:
        grey /= 65535
    return np.repeat((grey * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def _pyramid_bytes(width: int, height: int) -> int:
    """What the levels of an image of this size take."""
    nbytes = width * height * 3
    while max(width, height) >= 2 * SMALLEST_LEVEL_SIDE:
        width, height = (width + 1) // 2, (height + 1) // 2
        nbytes += width * height * 3
    return nbytes


def _pyramid(pixels: Pixels) -> tuple[Pixels, ...]:
    levels = [pixels]
    while max(levels[-1].shape[:2]) >= 2 * SMALLEST_LEVEL_SIDE:
        last = levels[-1]
        height, width = last.shape[:2]
        # An odd last row or column counts twice, so that every pixel of the half is an average of four.
        even = (
            cv2.copyMakeBorder(last, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            if (height % 2 or width % 2)
            else last
        )
        levels.append(cv2.resize(even, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    return tuple(levels)
