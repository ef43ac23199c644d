"""JPEG files: what is known without decoding them, and a strict decoder.

Where data are missing, libjpeg warns and goes on with grey; here that is an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
import simplejpeg

from polywand_pictures.errors import TooMuchError, UnreadableError, damaged
from polywand_pictures.header import TURN_BYTES, Admission, Header, Pixels, strips
from polywand_pictures.orientation import UPRIGHT, orientation_of_exif, swaps_sides, upright

START = b"\xff\xd8"
# Most segments before the frame header: honest files have some dozens, a few more with a large colour profile.
MAX_SEGMENTS = 512
# Most scans of a file; progressive ones have about ten. Each is decoded over the whole image, however small it is.
MAX_SCANS = 500
# Up to this count, it does not matter that bytes after the end of the image may be counted as scans.
_FEW_SCANS = 16
_START_OF_SCAN = b"\xff\xda"
_EXIF = b"Exif\0\0"
# Baseline, extended sequential and progressive, by Huffman coding (ITU-T T.81, table B.1).
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)
_RARE_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)
_FRAMES = (*_COMMON_FRAMES, *_RARE_FRAMES, 0xC9, 0xCA)  # the last two are coded arithmetically
_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
_STANDALONE = (0x01, *range(0xD0, 0xD8))
_END, _SCAN, _PROFILE = 0xD9, 0xDA, 0xE2
# The end of a scan's data: FF, but not FF 00, a restart marker or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Bytes searched at once; other threads can run in between.
_CHUNK_BYTES = 1 << 20
# Memory of libjpeg in bytes per pixel: its pixels, and the coefficients of a progressive file; CMYK: one more.
_DECODER_BYTES = 12
_BAD_PROFILE = "ICC"
# Warnings of libjpeg about complete images: fill bytes before the end, and headers of some cameras.
_HARMLESS = ("before marker 0xd9", "Invalid SOS parameters", "Unknown Adobe color transform", "JFIF revision")


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """width, height: before orientation. components: 1 grey, 3 colour, 4 CMYK. bits: of a sample. frame: its marker.

    is_common: grey or colour, and of a frame type that every decoder supports.
    """

    width: int
    height: int
    components: int
    bits: int
    frame: int
    is_common: bool
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after orientation."""
        return (self.height, self.width) if swaps_sides(self.orientation) else (self.width, self.height)


def read_header(data: memoryview) -> JpegHeader | None:
    """Read the frame header of a JPEG file; None if it is another file, or the header is not found."""
    if bytes(data[:2]) != START:
        return None
    at, orientation = 2, UPRIGHT
    for _ in range(MAX_SEGMENTS):
        while at + 1 < len(data) and data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if at + 4 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in _STANDALONE:
            at += 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + size]
        if size < 2 or marker == _SCAN:
            return None
        if marker in _FRAMES:
            return _frame(marker, content, orientation)
        if marker == 0xE1 and bytes(content[:6]) == _EXIF and orientation == UPRIGHT:
            orientation = orientation_of_exif(content)
        at += 2 + size
    return None


def check_scans(data: memoryview) -> int:
    """Return the number of scans. Raises TooMuchError if there are more than MAX_SCANS."""
    scans = _count(data, _FEW_SCANS)
    if scans > _FEW_SCANS:
        scans = sum(1 for _ in islice(_scans(data), MAX_SCANS + 1))
    if scans > MAX_SCANS:
        raise TooMuchError(f"the JPEG file has more than {MAX_SCANS} scans, the most that are decoded")
    return scans


def decode(data: memoryview, header: JpegHeader) -> Pixels:
    """Decode a complete file, upright: uint8 [H, W, 3]; bytes after the end of the image are ignored.

    Call `check_scans` before. Raises UnreadableError if data are missing.
    """
    if header.frame in _SEQUENTIAL_FRAMES:
        _check_components(data, header.components)
    space = "CMYK" if header.components == 4 else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        if _BAD_PROFILE in str(error):
            pixels = _decode_again(_without_profiles(data), space)
        else:
            pixels = _decode_despite_warning(error, data, space)
    if pixels.shape[:2] != (header.height, header.width):
        raise UnreadableError("the image is damaged: it contains two different sizes")
    return upright(_cmyk_to_rgb(pixels) if space == "CMYK" else pixels, header.orientation)


def read(data: memoryview, admit: Admission) -> None:
    """Decode any JPEG file into the memory that `admit` provides.

    Raises:
        UnreadableError, TooMuchError, and what `admit` raises
    """
    header = read_header(data)
    if header is None:
        raise damaged("it has no valid JPEG header")
    if header.components not in (1, 3, 4):
        raise UnreadableError(f"JPEG files of {header.components} components are not read: save it as PNG")
    if header.bits != 8:
        raise UnreadableError(f"JPEG files of {header.bits} bits are not read: save it as PNG")
    if header.frame in _RARE_FRAMES:
        raise UnreadableError("lossless and hierarchical JPEG files are not read: save it as PNG")
    check_scans(data)
    pixel_bytes = _DECODER_BYTES + TURN_BYTES + header.components
    make_room = admit(Header(header.width, header.height, header.width * header.height * pixel_bytes))
    np.copyto(make_room(*header.upright_size), decode(data, header))


def _check_components(data: memoryview, components: int) -> None:
    """Raise UnreadableError if a file ends before the scans of all components, which libjpeg accepts."""
    found: set[int] = set()
    for at in _scans(data):
        count = data[at + 2] if at + 2 < len(data) else 0
        found |= set(data[at + 3 : at + 3 + 2 * count : 2])
        if len(found) >= components:
            return
    raise damaged(f"{len(found)} of {components} components")


def _decode_again(data: bytes, space: str) -> Pixels:
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, space))
    except ValueError as error:
        return _decode_despite_warning(error, data, space)


def _decode_despite_warning(warning: ValueError, data: bytes | memoryview, space: str) -> Pixels:
    """Decode again despite a warning of libjpeg, if it is a harmless one. Raises UnreadableError."""
    if not any(text in str(warning) for text in _HARMLESS):
        raise damaged(warning) from warning
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, space, strict=False))
    except ValueError as error:
        raise damaged(error) from error


def _without_profiles(data: memoryview) -> bytes:
    """Return the file without the colour profiles before the frame header."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in _FRAMES and data[at + 1] != _SCAN:
        size = 2 if data[at + 1] in _STANDALONE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != _PROFILE:
            kept.append(data[at : at + size])
        at += size
    return b"".join((*kept, data[at:]))


def _cmyk_to_rgb(cmyk: Pixels) -> Pixels:
    """Convert CMYK as in files, uint8 [H, W, 4] with 255 for no ink, to RGB [H, W, 3]."""
    height, width = cmyk.shape[:2]
    pixels = np.empty((height, width, 3), np.uint8)
    for rows in strips(width, height):
        pixels[rows] = cv2.multiply(cmyk[rows, :, :3], cv2.merge([cmyk[rows, :, 3]] * 3), scale=1 / 255)
    return pixels


def _count(data: memoryview, most: int) -> int:
    """Return an upper bound of the number of scans: those of a preview and bytes after the image count, too.

    A scan's data cannot contain the marker, as FF is followed by 00 there.
    """
    scans = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        scans += bytes(data[start : start + _CHUNK_BYTES + 1]).count(_START_OF_SCAN)
        if scans > most:
            break
    return scans


def _scans(data: memoryview) -> Iterator[int]:
    """Yield the offsets of the image's own scans."""
    at = 2
    while at + 4 <= len(data):
        found = _MARKER.search(data, at)
        if found is None or data[found.start() + 1] == _END:
            return
        at = found.start() + 2
        if data[at - 1] in _STANDALONE:
            continue
        if data[at - 1] == _SCAN:
            yield at
        at += int.from_bytes(data[at : at + 2], "big")


def _frame(marker: int, content: memoryview, orientation: int) -> JpegHeader | None:
    if len(content) < 6:
        return None
    precision, height, width = content[0], int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    components = content[5]
    is_common = marker in _COMMON_FRAMES and precision == 8 and components in (1, 3)
    return JpegHeader(width, height, components, precision, marker, is_common, orientation)
