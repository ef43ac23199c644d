"""PNG files.

Decoders get only the chunks of the picture itself, so that no text, profile or EXIF, however long or damaged, affects
the pixels.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from polywand_pictures import pillow
from polywand_pictures.errors import RangeError, damaged
from polywand_pictures.header import TURN_BYTES, Admission, Header, Pixels, ValueRange, strips
from polywand_pictures.orientation import UPRIGHT, fill_upright, orientation_of_exif
from polywand_pictures.ranges import Values, scale_of, white_of

START = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"IDAT")
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_KNOWN = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16), _RGBA: (8, 16)}
# Memory of decoding in bytes per pixel: Pillow, 8 bits; OpenCV, 16 bits of four channels and a copy.
_BYTES_8, _BYTES_16 = 12, 20


@dataclass(frozen=True, slots=True)
class _File:
    """width, height: before orientation. transparent: the tRNS chunk. picture: a PNG file of the picture alone."""

    width: int
    height: int
    depth: int
    colour: int
    transparent: bytes
    orientation: int
    picture: bytes


def read(data: memoryview, admit: Admission, value_range: ValueRange | None) -> None:
    """Decode a file into the memory that `admit` provides.

    Raises:
        UnreadableError, RangeError, and what `admit` raises
    """
    file = _read_chunks(data)
    if value_range is not None and file.depth < 16:
        raise RangeError(f"the values of this file have {file.depth} bits; a range is for 16 bits")
    pixel_bytes = (_BYTES_16 if file.depth == 16 else _BYTES_8) + TURN_BYTES
    make_room = admit(Header(file.width, file.height, file.width * file.height * pixel_bytes + len(data)))
    size = (file.width, file.height)
    fill_upright(make_room, size, file.orientation, lambda pixels: _fill(pixels, file, value_range))


def _read_chunks(data: memoryview) -> _File:
    kept: list[bytes | memoryview] = [START]
    head, transparent, orientation, at = b"", b"", UPRIGHT, len(START)
    has_pixels = has_palette = False
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + size]
        if kind == b"IEND":
            break
        if at == len(START) and (kind != b"IHDR" or size != 13):
            raise damaged("a PNG file that does not begin with its header")
        if kind == b"IHDR" and head:
            raise damaged("a PNG file with two headers")
        if kind == b"IHDR":
            head = bytes(content)
        if kind in _PICTURE:
            kept.append(data[at : at + 12 + size])
            has_pixels |= kind == b"IDAT"
            has_palette |= kind == b"PLTE" and not has_pixels
        elif kind == b"tRNS" and not has_pixels:
            transparent = bytes(content[:512])
        elif kind == b"eXIf" and orientation == UPRIGHT:
            orientation = orientation_of_exif(content)
        at += 12 + size
    if not head or not has_pixels:
        raise damaged("no pixels before the end of the PNG file")
    width, height, depth, colour = struct.unpack(">IIBB", head[:10])
    if depth not in _KNOWN.get(colour, ()):
        raise damaged(f"a PNG file of colour type {colour} with {depth} bits")
    if colour == _PALETTE and not has_palette:
        raise damaged("a PNG file without its palette")
    if colour == _PALETTE and transparent:
        kept.insert(-sum(part[4:8] == b"IDAT" for part in kept[1:]), _chunk(b"tRNS", transparent))
    return _File(width, height, depth, colour, transparent, orientation, b"".join((*kept, _chunk(b"IEND", b""))))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _fill(pixels: Pixels, file: _File, value_range: ValueRange | None) -> None:
    if file.depth == 16:
        _fill_from_16_bits(pixels, file, value_range)
        return
    with pillow.opened(io.BytesIO(file.picture), "PNG") as image:
        image.load()
        pillow.fill(pixels, image)
    key = _key(file)
    if key is None:
        return
    if file.colour == _GREY:
        key = [key[0] * 255 // ((1 << file.depth) - 1)] * 3
    for rows in strips(file.width, file.height):
        pixels[rows][(pixels[rows] == np.array(key)).all(axis=2)] = 255


def _key(file: _File) -> list[int] | None:
    """Return the grey or colour that is transparent, in the file's own values; None without one."""
    count = {_GREY: 1, _RGB: 3}.get(file.colour, 0)
    if not count or len(file.transparent) < 2 * count:
        return None
    return [value & ((1 << file.depth) - 1) for value in struct.unpack_from(f">{count}H", file.transparent)]


def _fill_from_16_bits(pixels: Pixels, file: _File, value_range: ValueRange | None) -> None:
    """Decode by OpenCV: Pillow drops the lower eight bits of colours, which the range of values needs."""
    values = cv2.imdecode(np.frombuffer(file.picture, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != (file.height, file.width):
        raise damaged("OpenCV cannot decode its pixels")
    if values.ndim == 2:
        values = values[..., None]
    has_opacity = values.shape[2] == 4
    parts = [values[rows] for rows in strips(file.width, file.height)]
    scale = scale_of((_colours(part) for part in parts), value_range)
    opaque = max((int(part[..., 3].max()) for part in parts), default=0) if has_opacity else 0
    key = _key(file)
    for rows in strips(file.width, file.height):
        strip = values[rows]
        colours = _colours(strip)
        if has_opacity:
            opacity = strip[..., 3:].astype(np.float32) / max(
                white_of(opaque), scale.high if value_range is None else 1
            )
            unit = scale.units(colours) * opacity + 1 - opacity
            pixels[rows] = (unit * 255 + 0.5).astype(np.uint8)
            continue
        pixels[rows] = scale.to_8_bits(colours)
        if key is not None:
            pixels[rows][(colours == np.array(key)).all(axis=2)] = 255


def _colours(values: Values) -> Values:
    """Convert OpenCV's channels to colours: BGR or BGRA to RGB; grey stays."""
    return values[..., :1] if values.shape[2] < 3 else values[..., 2::-1]


def small_size(data: memoryview, most_bytes: int, most_pixels: int) -> tuple[int, int] | None:
    """Return width and height, before orientation, of a file that is cheap to decode, whatever it contains; else None.

    None for 16 bits, too: their decoder writes warnings to standard error.
    """
    if len(data) > most_bytes or len(data) < 25 or bytes(data[:8]) != START or data[24] == 16:
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return (width, height) if 0 < width * height <= most_pixels else None
