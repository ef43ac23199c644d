"""AVIF and HEIC files: the primary picture. Its orientation is in the boxes irot and imir; EXIF only repeats it."""

import io
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, features

from polywand_pictures import pillow
from polywand_pictures.errors import UnreadableError, damaged
from polywand_pictures.header import TURN_BYTES, Admission, Header, strips
from polywand_pictures.orientation import UPRIGHT, fill_upright, orientation_of_exif

try:
    import pi_heif
except ImportError:  # the extra `heic` is not installed
    pi_heif = None

_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
# Memory of decoding, in bytes per pixel: planes of 16 bits, reference frames, RGBA twice, and Pillow's own.
_DECODER_BYTES = 24
# Most boxes of one level that are read.
_MAX_BOXES = 1024

# More threads would need address space, which is limited in a child process, and CPU time of other requests.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def reads_avif() -> bool:
    """Whether Pillow has a decoder of AVIF."""
    return bool(features.check("avif"))


def reads_heic() -> bool:
    """Whether the extra `heic` is installed."""
    return pi_heif is not None


def brand(data: memoryview) -> str | None:
    """Return "AVIF" or "HEIC"; None for other files."""
    if bytes(data[4:8]) != b"ftyp":
        return None
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [bytes(data[8:12]), *(bytes(data[at : at + 4]) for at in range(16, size, 4))]
    if brands[0] in _AVIF_BRANDS:
        return "AVIF"
    if brands[0] in _HEIC_BRANDS:
        return "AVIF" if any(one in _AVIF_BRANDS for one in brands) else "HEIC"
    return None


def read_avif(data: memoryview, admit: Admission) -> None:
    """Decode an AVIF file into the memory that `admit` provides.

    Raises:
        UnreadableError, and what `admit` raises
    """
    if not reads_avif():
        raise UnreadableError(
            "AVIF files cannot be read here, as Pillow was built without an AVIF decoder: save it as PNG or JPEG"
        )
    with pillow.opened(io.BytesIO(_without_exif(data)), "AVIF") as image:
        width, height = image.size
        make_room = admit(Header(width, height, _decoder_bytes(data, width, height)))
        image.load()
        # Pillow returns the boxes' orientation as EXIF.
        exif = image.info.get("exif")
        orientation = orientation_of_exif(memoryview(exif)) if exif else UPRIGHT
        fill_upright(make_room, (width, height), orientation, lambda pixels: pillow.fill(pixels, image))


def read_heic(data: memoryview, admit: Admission) -> None:
    """Decode a HEIC file into the memory that `admit` provides.

    Raises:
        UnreadableError: it is damaged, or the extra `heic` is not installed.
        What `admit` raises
    """
    if not reads_heic():
        raise UnreadableError(
            "HEIC files can be read only if Polywand is installed with its extra `heic`: save it as PNG or JPEG"
        )
    try:
        file = pi_heif.open_heif(bytes(data), convert_hdr_to_8bit=True)
        picture = file[file.primary_index]
        width, height = picture.size
    except (ValueError, OSError, EOFError, RuntimeError, SyntaxError, LookupError) as error:
        raise damaged(error) from error
    make_room = admit(Header(width, height, _decoder_bytes(data, width, height)))
    try:
        values = _values(picture)
    except (ValueError, OSError, EOFError, RuntimeError) as error:
        raise damaged(error) from error
    pixels = make_room(width, height)
    if values.shape[:2] != (height, width):
        raise damaged("it contains two different sizes")
    for rows in strips(width, height):
        strip = values[rows]
        if strip.shape[2] in (2, 4):
            opacity = strip[..., -1:].astype(np.float32) / 255
            colours = strip[..., :-1].astype(np.float32)
            if not picture.info.get("premultiplied_alpha"):
                colours *= opacity
            pixels[rows] = (colours + 255 * (1 - opacity) + 0.5).clip(0, 255).astype(np.uint8)
        else:
            pixels[rows] = strip


def _values(picture: Any) -> Any:
    """Return the pixels, uint8 [H, W, C] with 1 to 4 channels."""
    values = np.asarray(picture)
    return values[..., None] if values.ndim == 2 else values


def _decoder_bytes(data: memoryview, width: int, height: int) -> int:
    return width * height * (_DECODER_BYTES + TURN_BYTES) + 2 * len(data)


def _without_exif(data: memoryview) -> bytes:
    """Rename the EXIF items, so that damaged EXIF is ignored; the orientation is in other boxes."""
    changed = bytearray(data)
    for start, end in _boxes(data, 0, len(data), b"meta"):
        for list_start, list_end in _boxes(data, start + 4, end, b"iinf"):
            at = changed.find(b"Exif", list_start, list_end)
            while at >= 0:
                changed[at : at + 4] = b"skip"
                at = changed.find(b"Exif", at, list_end)
    return bytes(changed)


def _boxes(data: memoryview, at: int, end: int, kind: bytes) -> list[tuple[int, int]]:
    """Return (start, end) of the content of each box of this kind, between at and end (ISO/IEC 14496-12, 4.2)."""
    found = []
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            break
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = end - at
        if size < head:
            break
        if bytes(data[at + 4 : at + 8]) == kind:
            found.append((at + head, min(at + size, end)))
        at += size
    return found
