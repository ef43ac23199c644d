"""PNG: polygons to an image file of one bit a pixel."""

import io

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from polywand_contract.raster import fill_rings
from polywand_server.geometry.rings import rings, vertices

# Masks are compressed well by the fastest level: higher ones save a third, and take several times as long.
_COMPRESSION = 1
_BITS = 8


def to_png(polygons: shapely.MultiPolygon, width: int, height: int) -> bytes:
    """Rasterise polygons (image pixels, corners at integers) into a PNG file: white inside, black outside.

    A pixel is white when its centre lies inside by the contract's rule, as in `to_rle`. width, height: in pixels.
    """
    packed = np.zeros((height, (width + _BITS - 1) // _BITS), np.uint8)
    if not polygons.is_empty:
        _fill(packed, polygons, width)
    return _file(Image.frombuffer("1", (width, height), packed.tobytes(), "raw", "1", 0, 1))


def moved_png(data: bytes, offset: tuple[int, int], size: tuple[int, int]) -> bytes:
    """Paste a file of `to_png` into a larger image, at an offset (left, top). size: (width, height) of that, pixels."""
    image = Image.new("1", size)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as part:
        image.paste(part, offset)
    return _file(image)


def _file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def _fill(packed: NDArray[np.uint8], polygons: shapely.MultiPolygon, width: int) -> None:
    """Set the bits of polygons in rows of packed pixels [height, width / 8], from the highest bit of a byte down.

    Only the box of the polygons is filled: an object is small in its image.
    """
    x0, y0, x1, y1 = polygons.bounds
    first, top = max(0, int(x0) // _BITS), max(0, int(y0))
    right, bottom = min(width, int(np.ceil(x1))), min(len(packed), int(np.ceil(y1)))
    if first * _BITS >= right or top >= bottom:
        return
    moved = [vertices(ring) - (first * _BITS, top) for ring in rings(polygons)]
    bits = np.packbits(fill_rings(moved, right - first * _BITS, bottom - top), axis=1)
    packed[top:bottom, first : first + bits.shape[1]] = bits
