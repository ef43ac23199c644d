"""Pillow's pictures to RGB, in strips of rows."""

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

# What Pillow's readers raise on truncated and damaged files.
_DAMAGE = (
    *(OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, OverflowError, RuntimeError),
    *(struct.error, zlib.error),
)
# Bytes a pixel of Pillow's own memory, by mode; of others 4.
_CORE_BYTES = {"1": 1, "L": 1, "P": 1}

# Pillow registers its rarer readers on demand, and then not for `open` with a list of formats.
Image.init()
# Pillow's own limit would warn below ours, and refuse what ours allows.
Image.MAX_IMAGE_PIXELS = None


@contextmanager
def opened(file: IO[bytes], kind: str) -> Iterator[ImageFile.ImageFile]:
    """Open a file of one kind; what goes wrong while it is open is damage. Raises UnreadableError."""
    try:
        with Image.open(file, formats=[kind]) as image:
            yield image
    except UnidentifiedImageError as error:  # its own text names an object of ours
        raise damaged(f"its header is not one of {kind}") from error
    except _DAMAGE as error:
        raise damaged(error) from error


def core_bytes(mode: str) -> int:
    """Bytes a pixel of Pillow's own memory for a picture of this mode."""
    return _CORE_BYTES.get(mode, 4)


def fill(pixels: Pixels, image: Image.Image) -> None:
    """Write a loaded picture of 8 bits as RGB into pixels [H, W, 3], what is transparent as white."""
    to_rgb = _from_lab() if image.mode == "LAB" else None
    has_opacity = image.has_transparency_data
    for rows, strip in cut(image):
        if to_rgb is not None:
            pixels[rows] = np.asarray(ImageCms.applyTransform(strip, to_rgb))
        else:
            pixels[rows] = _on_white(strip) if has_opacity else np.asarray(strip.convert("RGB"))


def cut(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Cut a picture into strips of whole rows."""
    for rows in strips(*image.size):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
