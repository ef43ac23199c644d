"""Pillow's images to RGB, in strips of rows."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from polywand_pictures.errors import damaged
from polywand_pictures.header import Pixels, strips

# The exceptions of Pillow's readers for truncated and damaged files.
_DAMAGE = (
    *(OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, OverflowError, RuntimeError),
    *(struct.error, zlib.error),
)
# Pillow's memory in bytes per pixel, by mode; 4 for other modes.
_CORE_BYTES = {"1": 1, "L": 1, "P": 1}

# Pillow registers its rarer readers on demand, but not if `open` gets a list of formats.
Image.init()
# Pillow's own limit would warn about and refuse images that the caller admits.
Image.MAX_IMAGE_PIXELS = None


@contextmanager
def opened(file: IO[bytes], kind: str) -> Iterator[ImageFile.ImageFile]:
    """Open a file of one format; Pillow's errors until it is closed become UnreadableError."""
    try:
        with Image.open(file, formats=[kind]) as image:
            yield image
    except UnidentifiedImageError as error:  # its text contains the repr of `file`
        raise damaged(f"its {kind} header is invalid") from error
    except _DAMAGE as error:
        raise damaged(error) from error


def core_bytes(mode: str) -> int:
    """Return Pillow's memory for an image of this mode, in bytes per pixel."""
    return _CORE_BYTES.get(mode, 4)


def fill(pixels: Pixels, image: Image.Image) -> None:
    """Write a loaded 8-bit image as RGB into pixels [H, W, 3], on white where transparent."""
    to_rgb = _from_lab() if image.mode == "LAB" else None
    has_opacity = image.has_transparency_data
    for rows, strip in cut(image):
        if to_rgb is not None:
            pixels[rows] = np.asarray(ImageCms.applyTransform(strip, to_rgb))
        else:
            pixels[rows] = _on_white(strip) if has_opacity else np.asarray(strip.convert("RGB"))


def cut(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield strips of whole rows of an image."""
    for rows in strips(*image.size):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
