"""PNG: polygons to an image file of one bit a pixel.

Written here, since OpenCV and Pillow take ten times as long: they fill, convert and pack the whole image, byte by byte,
and not only the box of the object.
"""

import struct
import zlib

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_contract.raster import fill_rings
from polywand_server.geometry.rings import rings, vertices

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# One bit a pixel, greyscale; the only methods of compression and filters; not interlaced.
_LAYOUT = bytes((1, 0, 0, 0, 0))
# Masks are compressed well by the fastest level: higher ones save a third, and take several times as long.
_COMPRESSION = 1
_BITS = 8


def to_png(polygons: shapely.MultiPolygon, width: int, height: int) -> bytes:
    """Rasterise polygons (image pixels, corners at integers) into a PNG file: white inside, black outside.

    A pixel is white when its centre lies inside by the contract's rule, as in `to_rle`. width, height: in pixels.
    """
    rows = np.zeros((height, 1 + (width + _BITS - 1) // _BITS), np.uint8)  # a row begins with its filter, 0: none
    if not polygons.is_empty:
        _fill(rows[:, 1:], polygons, width)
    return _file(rows, width)


def moved_png(data: bytes, size: tuple[int, int], offset: tuple[int, int], image: tuple[int, int]) -> bytes:
    """Place a file of `to_png` in a larger image, at an offset (left, top). size, image: (width, height), pixels."""
    (width, height), (left, top), (image_width, image_height) = size, offset, image
    begin = len(_SIGNATURE) + len(_chunk(b"IHDR", struct.pack(">II", width, height) + _LAYOUT))
    (nbytes,) = struct.unpack_from(">I", data, begin)
    packed = np.frombuffer(zlib.decompress(data[begin + 8 : begin + 8 + nbytes]), np.uint8).reshape(height, -1)
    bits = np.unpackbits(packed[:, 1:], axis=1, count=width)
    first, shift = divmod(left, _BITS)
    moved = np.packbits(np.pad(bits, ((0, 0), (shift, 0))), axis=1)
    rows = np.zeros((image_height, 1 + (image_width + _BITS - 1) // _BITS), np.uint8)
    rows[top : top + height, 1 + first : 1 + first + moved.shape[1]] = moved
    return _file(rows, image_width)


def _file(rows: NDArray[np.uint8], width: int) -> bytes:
    """Write a file. rows: uint8 [height, 1 + width / 8], the filter and the packed pixels of each row."""
    header = struct.pack(">II", width, len(rows)) + _LAYOUT
    data = zlib.compress(rows.tobytes(), _COMPRESSION)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b"")))


def _fill(packed: NDArray[np.uint8], polygons: shapely.MultiPolygon, width: int) -> None:
    """Set the bits of polygons in rows of packed pixels [height, width / 8], from the highest bit of a byte down."""
    x0, y0, x1, y1 = polygons.bounds
    first, top = max(0, int(x0) // _BITS), max(0, int(y0))
    right, bottom = min(width, int(np.ceil(x1))), min(len(packed), int(np.ceil(y1)))
    if first * _BITS >= right or top >= bottom:
        return
    moved = [vertices(ring) - (first * _BITS, top) for ring in rings(polygons)]
    bits = np.packbits(fill_rings(moved, right - first * _BITS, bottom - top), axis=1)
    packed[top:bottom, first : first + bits.shape[1]] = bits


def _chunk(name: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))))
