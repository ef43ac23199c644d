"""TIFF files: the first picture of a file.

Common files, of 8 bits in one plane, are decoded by Pillow. For all others, Pillow (libtiff) only decompresses the
bytes; planes, signs, floats, 2 to 64 bits and bands beside the colours are decoded here.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_pictures import pillow
from polywand_pictures.directories import (
    MAX_OFFSETS,
    MAX_VALUES,
    Tags,
    byte_order,
    first_directory,
    is_big,
    read_directory,
    without,
)
from polywand_pictures.errors import RangeError, UnreadableError, damaged
from polywand_pictures.header import TURN_BYTES, Admission, Header, Pixels, ValueRange, strips
from polywand_pictures.kinds import not_read
from polywand_pictures.orientation import TAG as ORIENTATION
from polywand_pictures.orientation import UPRIGHT, fill_upright
from polywand_pictures.ranges import Scale, Values, scale_of, white_of

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIPS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR, PREDICTOR, COLOUR_MAP = 273, 277, 278, 279, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, INK_SET, EXTRAS, FORMAT = 322, 323, 324, 325, 332, 338, 339
DIRECTORIES, NO_DATA, DNG = 330, 42113, 50706
# Pillow would apply the first, or the orientation in XMP (700), and warn of damaged EXIF (the last two).
_NOT_FOR_PILLOW = (ORIENTATION, 700, 34665, 34853)
_OFFSETS = (STRIPS, STRIP_BYTES, TILES, TILE_BYTES, COLOUR_MAP)
_WANTED = {
    tag: MAX_OFFSETS if tag in _OFFSETS else MAX_VALUES
    for tag in (
        *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIPS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES),
        *(PLANAR, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, INK_SET, EXTRAS, FORMAT),
        *(DIRECTORIES, NO_DATA, DNG, ORIENTATION),
    )
}

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_OF_SENSORS = (32803, 34892)  # colour filter array, linear raw
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
_PREMULTIPLIED, _OPACITY = 1, 2
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_IN_PLANES, _DIFFERENCES, _FLOAT_DIFFERENCES = 2, 2, 3
# Lossless compressions of libtiff: none, LZW, PackBits, deflate (two numbers), LZMA, Zstandard.
_BYTE_PACKINGS = (1, 5, 32773, 8, 32946, 34925, 50000)
# What Pillow decodes: (samples, first of ExtraSamples or None), by photometric interpretation.
_COMMON = {
    _WHITE_IS_ZERO: ((1, None),),
    _BLACK_IS_ZERO: ((1, None),),
    _RGB: ((3, None), (4, 0), (4, _PREMULTIPLIED), (4, _OPACITY), (4, None)),
    _PALETTE: ((1, None),),
    _CMYK: ((4, None),),
}
_PILLOW_BYTES = 8
_SHORT, _LONG = 3, 4


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of the samples, by the tags.

    samples: per pixel. kind: their type in memory, in the file's byte order. opacity: the index of its sample, or None.
    colours: the indices of colour samples. padded_width: pixels of a row of whole tiles.
    """

    width: int
    height: int
    bits: int
    samples: int
    kind: np.dtype[Any]
    photometric: int
    colours: tuple[int, ...]
    opacity: int | None
    is_premultiplied: bool
    in_planes: bool
    tile_width: int
    padded_width: int
    predictor: int

    @property
    def plane_samples(self) -> int:
        """Samples per pixel in one plane."""
        return 1 if self.in_planes else self.samples

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one plane."""
        tile_bytes = (self.tile_width * self.plane_samples * self.bits + 7) // 8
        return tile_bytes * (self.padded_width // self.tile_width)

    @property
    def planes(self) -> int:
        """Number of planes."""
        return self.samples if self.in_planes else 1


def read(data: memoryview, admit: Admission, value_range: ValueRange | None) -> None:
    """Decode the first picture of a file into the memory that `admit` provides.

    Raises:
        UnreadableError, RangeError, and what `admit` raises
    """
    at = first_directory(data)
    tags = read_directory(data, at, _WANTED) if at is not None else {}
    _refuse_camera_raw(data, tags)
    width, height = _one(tags, WIDTH), _one(tags, HEIGHT)
    orientation = _one(tags, ORIENTATION, UPRIGHT)
    if orientation not in range(1, 9):
        orientation = UPRIGHT
    if _is_common(data, tags):
        if value_range is not None:
            raise RangeError("the values of this file have 8 bits; a range is for more")
        _read_by_pillow(data, (width, height), orientation, admit)
        return
    layout = _layout(data, tags, width, height)
    if value_range is not None and (layout.bits <= 8 or layout.photometric in (_PALETTE, _CMYK)):
        raise RangeError("a range is for grey and colours of more than 8 bits, which this file does not have")
    nbytes = (layout.row_bytes * layout.planes + (3 + TURN_BYTES) * width) * height
    make_room = admit(Header(width, height, nbytes + 2 * len(data)))
    planes = [_unpack(data, tags, layout, plane) for plane in range(layout.planes)]
    fill_upright(
        make_room, (width, height), orientation, lambda pixels: _fill(pixels, planes, layout, tags, value_range)
    )


def _one(tags: Tags, tag: int, otherwise: int | None = None) -> int:
    """Return the first value of a tag, or `otherwise`. Raises UnreadableError without either."""
    values = tags.get(tag)
    if values and isinstance(values[0], int):
        return values[0]
    if otherwise is None:
        raise damaged(f"no tag {tag} in the TIFF file")
    return otherwise


def _refuse_camera_raw(data: memoryview, tags: Tags) -> None:
    """Raise UnreadableError for camera raw: TIFF files whose first picture is a preview or sensor data."""
    if bytes(data[8:10]) == b"CR":
        raise not_read("camera raw (CR2)")
    if DNG in tags:
        raise not_read("camera raw (DNG)")
    below = (read_directory(data, at, {PHOTOMETRIC: 1}) for at in tags.get(DIRECTORIES, ())[:8] if isinstance(at, int))
    if any(directory.get(PHOTOMETRIC, (None,))[0] in _OF_SENSORS for directory in (tags, *below)):
        raise not_read("camera raw")


def _is_common(data: memoryview, tags: Tags) -> bool:
    """Return whether Pillow decodes it correctly: 8 bits in one plane, fax, or colours converted by libtiff."""
    photometric, samples = _one(tags, PHOTOMETRIC, _BLACK_IS_ZERO), _one(tags, SAMPLES, 1)
    if _one(tags, COMPRESSION, 1) not in _BYTE_PACKINGS or photometric == _YCBCR:
        return True
    if photometric not in _COLOURS:  # Lab, say
        return _bits(tags) == 8
    bits, extras = _bits(tags), tags.get(EXTRAS)
    kind = _one(tags, FORMAT, _UNSIGNED)
    is_plain = kind in (_UNSIGNED, _UNDEFINED) and _one(tags, PLANAR, 1) != _IN_PLANES
    is_known = (samples, extras[0] if extras else None) in _COMMON[photometric]
    if is_big(data) and byte_order(data) == ">":  # Pillow cannot read these
        return False
    return is_plain and is_known and (bits == 8 or (bits == 1 and samples == 1 and photometric != _PALETTE))


def _bits(tags: Tags) -> int:
    bits = tags.get(BITS, (1,))
    if len(set(bits)) != 1:
        raise UnreadableError("TIFF files with samples of different bits are not read: save it as PNG")
    return int(bits[0])


def _read_by_pillow(data: memoryview, size: tuple[int, int], orientation: int, admit: Admission) -> None:
    width, height = size
    with pillow.opened(io.BytesIO(without(data, _NOT_FOR_PILLOW)), "TIFF") as image:
        if image.size != size:
            raise damaged("it contains two different sizes")
        nbytes = width * height * (pillow.core_bytes(image.mode) + _PILLOW_BYTES + TURN_BYTES)
        make_room = admit(Header(width, height, nbytes + 2 * len(data)))
        image.load()
        fill_upright(make_room, size, orientation, lambda pixels: pillow.fill(pixels, image))


def _layout(data: memoryview, tags: Tags, width: int, height: int) -> _Layout:
    photometric, samples, bits = _one(tags, PHOTOMETRIC, _BLACK_IS_ZERO), _one(tags, SAMPLES, 1), _bits(tags)
    if photometric not in _COLOURS:
        raise UnreadableError(f"TIFF files of colour space {photometric} with {bits} bits are not read: save it as PNG")
    count = _COLOURS[photometric]
    if photometric == _CMYK and _one(tags, INK_SET, 1) != 1:
        raise UnreadableError("TIFF files of other inks than CMYK are not read: save it as PNG")
    if not 1 <= samples <= 1024 or samples < count:
        raise damaged(f"{samples} samples per pixel")
    extras = tags.get(EXTRAS, ())
    if not extras and photometric == _RGB and samples == 4:
        extras = (_OPACITY,)
    opacity = next((number for number, extra in enumerate(extras) if extra in (_PREMULTIPLIED, _OPACITY)), None)
    if opacity is not None and count + opacity >= samples:
        opacity = None
    colours = tuple(range(count))
    # GIS programs write colours of more than 8 bits as bands of grey.
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and samples >= 3 and (opacity is None or opacity >= 2):
        colours = (0, 1, 2)
    tile_width = _one(tags, TILE_WIDTH) if TILES in tags else width
    if not 0 < tile_width <= 1 << 20:
        raise damaged(f"tiles of {tile_width} pixels")
    return _Layout(
        width,
        height,
        bits,
        samples,
        _kind(bits, _one(tags, FORMAT, _UNSIGNED), byte_order(data)),
        photometric,
        colours,
        None if opacity is None else count + opacity,
        opacity is not None and extras[opacity] == _PREMULTIPLIED,
        _one(tags, PLANAR, 1) == _IN_PLANES and samples > 1,
        tile_width,
        -(-width // tile_width) * tile_width,
        _one(tags, PREDICTOR, 1),
    )


def _kind(bits: int, sample_format: int, order: str) -> np.dtype[Any]:
    letter = {_UNSIGNED: "u", _UNDEFINED: "u", _SIGNED: "i", _FLOAT: "f"}.get(sample_format)
    if letter is None:
        raise UnreadableError("TIFF files of complex numbers are not read: save it as floats or as PNG")
    if letter == "u" and bits < 16 and bits != 8 and bits >= 1:
        return np.dtype("u1" if bits < 8 else "u2")  # unpacked from bits
    if (letter == "f" and bits in (16, 32, 64)) or (letter != "f" and bits in (8, 16, 32, 64)):
        return np.dtype(f"{order}{letter}{bits // 8}")
    raise UnreadableError(f"TIFF files with samples of {bits} bits are not read: save it as PNG")


def _unpack(data: memoryview, tags: Tags, layout: _Layout, plane: int) -> NDArray[np.uint8]:
    """Decompress one plane by Pillow, as if its bytes were a grey image: uint8 [H, row_bytes].

    So all compressions of libtiff are supported, and the result has the expected size, whatever the file contains.
    """
    is_tiled = TILES in tags
    offsets, sizes = (tags.get(tag, ()) for tag in ((TILES, TILE_BYTES) if is_tiled else (STRIPS, STRIP_BYTES)))
    segments = len(offsets) // layout.planes
    own = slice(plane * segments, (plane + 1) * segments)
    if not segments or (not sizes and len(offsets) > 1):
        raise damaged("it has no offsets of its pixels")
    packing = _one(tags, COMPRESSION, 1)
    sizes = sizes or (layout.row_bytes * layout.height,)
    tile_bytes = layout.row_bytes // (layout.padded_width // layout.tile_width)
    entries: dict[int, tuple[int, tuple[int, ...]]] = {
        WIDTH: (_LONG, (layout.row_bytes,)),
        HEIGHT: (_LONG, (layout.height,)),
        BITS: (_SHORT, (8,)),
        COMPRESSION: (_SHORT, (packing,)),
        PHOTOMETRIC: (_SHORT, (_BLACK_IS_ZERO,)),
        FILL_ORDER: (_SHORT, (_one(tags, FILL_ORDER, 1),)),
        SAMPLES: (_SHORT, (1,)),
        TILES if is_tiled else STRIPS: (_LONG, offsets[own]),
        TILE_BYTES if is_tiled else STRIP_BYTES: (_LONG, sizes[own]),
    }
    if is_tiled:
        entries |= {TILE_WIDTH: (_LONG, (tile_bytes,)), TILE_HEIGHT: (_LONG, (_one(tags, TILE_HEIGHT),))}
    else:
        entries[ROWS_PER_STRIP] = (_LONG, (min(_one(tags, ROWS_PER_STRIP, layout.height), layout.height),))
    with pillow.opened(io.BytesIO(_with_directory(data, entries)), "TIFF") as image:
        image.load()
        return np.asarray(image)


def _with_directory(data: memoryview, entries: dict[int, tuple[int, tuple[int, ...]]]) -> bytes:
    """Return a classic little-endian TIFF file of the same bytes with a new directory at its end."""
    at = len(data) + len(data) % 2
    directory, values = [struct.pack("<H", len(entries))], []
    values_at = at + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        kind, numbers = entries[tag]
        try:
            content = struct.pack(f"<{len(numbers)}{'H' if kind == _SHORT else 'I'}", *numbers)
        except struct.error as error:
            raise damaged(error) from error
        directory.append(struct.pack("<HHI", tag, kind, len(numbers)))
        if len(content) <= 4:
            directory.append(content.ljust(4, b"\0"))
        else:
            directory.append(struct.pack("<I", values_at))
            values.append(content)
            values_at += len(content)
    head = b"II*\0" + struct.pack("<I", at)
    return b"".join((head, data[8:], b"\0" * (len(data) % 2), *directory, bytes(4), *values))


def _values(planes: list[NDArray[np.uint8]], layout: _Layout, rows: slice) -> Values:
    """Convert rows of bytes to samples: [rows, W, samples]."""
    parts = [_plane_values(plane[rows], layout) for plane in planes]
    return np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]


def _plane_values(rows: NDArray[np.uint8], layout: _Layout) -> Values:
    """Convert rows of bytes of one plane to samples: [rows, W, plane_samples]; a row contains a row of every tile."""
    tiles = layout.padded_width // layout.tile_width
    numbers = layout.tile_width * layout.plane_samples
    packed = np.ascontiguousarray(rows).reshape(len(rows), tiles, -1)
    values: Values
    if layout.predictor == _FLOAT_DIFFERENCES:
        values = _undo_float_differences(packed, layout)
    elif layout.bits in (8, 16, 32, 64):
        values = packed.view(layout.kind)
    else:
        bits = np.unpackbits(packed, axis=-1)[..., : numbers * layout.bits].reshape(len(rows), tiles, numbers, -1)
        values = np.zeros(bits.shape[:-1], layout.kind)
        for number in range(layout.bits):
            values = values << 1 | bits[..., number]
    values = values.reshape(len(rows), tiles, layout.tile_width, layout.plane_samples)
    if layout.predictor == _DIFFERENCES:
        # In whole numbers, which wrap, whatever the samples are.
        whole = values.view(f"{values.dtype.byteorder}u{values.dtype.itemsize}")
        native = whole.dtype.newbyteorder("=")
        summed = np.cumsum(whole, axis=2, dtype=native) & native.type((1 << max(layout.bits, 1)) - 1)
        values = summed.view(layout.kind.newbyteorder("="))
    return values.reshape(len(rows), layout.padded_width, layout.plane_samples)[:, : layout.width]


def _undo_float_differences(packed: NDArray[np.uint8], layout: _Layout) -> Values:
    """Adobe's predictor 3: differences of bytes, the first bytes of all samples before the second ones."""
    size = layout.kind.itemsize
    summed = packed.reshape(*packed.shape[:2], -1, layout.plane_samples).cumsum(axis=2, dtype=np.uint8)
    by_byte = summed.reshape(*packed.shape[:2], size, -1)
    return np.ascontiguousarray(np.swapaxes(by_byte, 2, 3)).view(f">f{size}")[..., 0]


def _fill(
    pixels: Pixels, planes: list[NDArray[np.uint8]], layout: _Layout, tags: Tags, value_range: ValueRange | None
) -> None:
    def every() -> Iterator[tuple[slice, Values]]:
        for rows in strips(layout.width * max(1, layout.samples // 3), layout.height):
            yield rows, _values(planes, layout, rows)

    if layout.photometric == _PALETTE:
        palette = _palette(tags, layout)
        for rows, values in every():
            pixels[rows] = palette[np.minimum(values[..., 0], len(palette) - 1)]
        return
    colours = list(layout.colours)
    scale = _scale(layout, lambda: (values[..., colours] for _, values in every()), tags, value_range)
    opaque = _opaque(layout, lambda: (values[..., layout.opacity] for _, values in every()), scale, value_range)
    for rows, values in every():
        chosen = values[..., colours]
        if layout.opacity is None and layout.photometric in (_BLACK_IS_ZERO, _RGB):
            pixels[rows] = scale.to_8_bits(chosen)
            continue
        unit = scale.units(chosen)
        if layout.photometric == _WHITE_IS_ZERO:
            unit = 1 - unit
        elif layout.photometric == _CMYK:
            unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
        if layout.opacity is not None:
            opacity = np.clip(values[..., layout.opacity : layout.opacity + 1].astype(np.float32) / opaque, 0, 1)
            unit = (unit if layout.is_premultiplied else unit * opacity) + 1 - opacity
        pixels[rows] = (np.clip(unit, 0, 1) * 255 + 0.5).astype(np.uint8)


def _palette(tags: Tags, layout: _Layout) -> Pixels:
    """Return the palette, uint8 [colours, 3]."""
    values = np.array(tags.get(COLOUR_MAP, ()), np.int64)
    if layout.bits > 16 or len(values) != 3 << layout.bits:
        raise damaged("it has no valid palette")
    if values.max() > 255:  # some writers use 8 bits instead of 16
        values >>= 8
    return values.reshape(3, -1).T.astype(np.uint8)


def _scale(layout: _Layout, parts: Any, tags: Tags, value_range: ValueRange | None) -> Scale:
    if layout.kind.kind == "u" and layout.bits < 16:
        return Scale(0, (1 << layout.bits) - 1) if value_range is None else Scale(*value_range)
    if layout.photometric == _CMYK:
        return Scale(0, 1 if layout.kind.kind == "f" else (1 << layout.bits) - 1)
    text = bytes(value & 0xFF for value in tags.get(NO_DATA, ())[:64] if isinstance(value, int))
    try:
        no_data = float(text.strip(b" \0"))
    except ValueError:
        no_data = None
    if no_data is not None and not _fits(no_data, layout.kind):
        no_data = None
    return scale_of(parts(), value_range, no_data)


def _fits(value: float, kind: np.dtype[Any]) -> bool:
    """Return whether samples of this type can have this value."""
    if kind.kind == "f":
        return bool(np.isfinite(value))
    limits = np.iinfo(kind)
    return value.is_integer() and limits.min <= value <= limits.max


def _opaque(layout: _Layout, parts: Any, scale: Scale, value_range: ValueRange | None) -> float:
    """Return the opaque value: that of white, if opacity does not exceed it; else by the bits of the largest value."""
    if layout.opacity is None:
        return 1
    if layout.kind.kind == "u" and layout.bits < 16:
        return (1 << layout.bits) - 1
    largest = max((float(np.nanmax(part)) for part in parts()), default=1.0)
    if layout.kind.kind == "f":
        return largest if largest > 1 else 1.0
    usual = white_of(largest)
    return max(usual, scale.high) if value_range is None and scale.low == 0 else usual
