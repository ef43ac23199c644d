"""BMP files: bit fields are decoded here, as Pillow reads only some of them; all others by Pillow."""

import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polywand_pictures import pillow
from polywand_pictures.errors import UnreadableError, damaged
from polywand_pictures.header import Admission, Header, Pixels, strips

_DECODER_BYTES = 16
_RUN_LENGTHS, _FIELDS = (1, 2), (3, 6)
_FIELDS_WITH_OPACITY = 6
# Sizes of headers; the second and third contain the masks, the third also the mask of opacity.
_SHORT, _WITH_MASKS, _WITH_OPACITY = 40, 52, 56


@dataclass(frozen=True, slots=True)
class _Fields:
    """width, height: in pixels. masks: of red, green, blue and opacity; 0 is none. begin: offset of the pixels."""

    width: int
    height: int
    bits: int
    masks: tuple[int, ...]
    begin: int
    is_bottom_up: bool


def read(data: memoryview, admit: Admission) -> None:
    """Decode a file into the memory that `admit` provides.

    Raises:
        UnreadableError, and what `admit` raises
    """
    fields = _read_fields(data)
    if fields is not None:
        make_room = admit(Header(fields.width, fields.height, len(data)))
        rows = _rows(data, fields)
        _fill_fields(make_room(fields.width, fields.height), rows, fields)
        return
    with pillow.opened(io.BytesIO(data), "BMP") as image:
        width, height = image.size
        make_room = admit(Header(width, height, width * height * _DECODER_BYTES + len(data)))
        image.load()
        pillow.fill(make_room(width, height), image)


def _read_fields(data: memoryview) -> _Fields | None:
    if len(data) < 14 + _SHORT:
        return None
    (begin, size) = struct.unpack_from("<II", data, 10)
    if size < _SHORT:
        return None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in _RUN_LENGTHS:
        # Pillow decodes them in Python, byte by byte: a kilobyte can take minutes.
        raise UnreadableError("BMP files with run-length compression are not read: save it as PNG")
    if compression not in _FIELDS or bits not in (16, 32):
        return None
    has_opacity = size >= _WITH_OPACITY or compression == _FIELDS_WITH_OPACITY
    count = 4 if has_opacity else 3
    if len(data) < 54 + 4 * count:
        raise damaged("it ends in its header")
    masks = struct.unpack_from(f"<{count}I", data, 54)
    if bits == 16 and any(mask >> 16 for mask in masks):
        raise damaged("masks of more bits than a pixel has")
    return _Fields(width, abs(height), bits, (*masks, 0)[:4], begin, height > 0)


def _rows(data: memoryview, fields: _Fields) -> NDArray[np.uint32 | np.uint16]:
    """Return the pixels [H, W], top row first."""
    pitch = (fields.width * fields.bits + 31) // 32 * 4
    if fields.begin + pitch * fields.height > len(data):
        raise damaged("it ends before its last row")
    pixel = np.dtype("<u2" if fields.bits == 16 else "<u4")
    rows = np.frombuffer(data, np.uint8, pitch * fields.height, fields.begin).reshape(fields.height, pitch)
    values = rows[:, : fields.width * pixel.itemsize].view(pixel)
    return values[::-1] if fields.is_bottom_up else values


def _fill_fields(pixels: Pixels, values: NDArray[np.uint32 | np.uint16], fields: _Fields) -> None:
    parts = strips(fields.width, fields.height)
    # Many writers leave the opacity field at 0: then nothing is transparent.
    has_opacity = bool(fields.masks[3]) and any(bool((values[rows] & fields.masks[3]).any()) for rows in parts)
    for rows in parts:
        red, green, blue = (_field(values[rows], mask) for mask in fields.masks[:3])
        unit = np.stack([red, green, blue], axis=-1)
        if has_opacity:
            opacity = _field(values[rows], fields.masks[3])[..., None]
            unit = unit * opacity + 1 - opacity
        pixels[rows] = (unit * 255 + 0.5).astype(np.uint8)


def _field(values: NDArray[np.uint32 | np.uint16], mask: int) -> NDArray[np.float32]:
    """Return one field of the pixels, float32 from 0 to 1."""
    if not mask:
        return np.zeros(values.shape, np.float32)
    shift = (mask & -mask).bit_length() - 1
    return ((values & values.dtype.type(mask)) >> values.dtype.type(shift)).astype(np.float32) / (mask >> shift)
