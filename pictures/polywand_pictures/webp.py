"""WebP files: the first frame, upright by the EXIF chunk. The container is described in RFC 9649, section 2."""

import io
import struct

from polywand_pictures import pillow
from polywand_pictures.errors import damaged
from polywand_pictures.header import TURN_BYTES, Admission, Header
from polywand_pictures.orientation import UPRIGHT, fill_upright, orientation_of_exif

# Memory in bytes per pixel: libwebp, as soon as a file is opened (measured, rounded up), and Pillow.
_DECODER_BYTES = 14 + 4
_METADATA = (b"EXIF", b"XMP ", b"ICCP")


def is_webp(data: memoryview) -> bool:
    """Return whether these are the bytes of a WebP file."""
    return bytes(data[:4]) == b"RIFF" and bytes(data[8:12]) == b"WEBP"


def read(data: memoryview, admit: Admission) -> None:
    """Decode a file into the memory that `admit` provides.

    Raises:
        UnreadableError, and what `admit` raises
    """
    size = _size(data)
    if size is None:
        raise damaged("it has no valid WebP header")
    width, height = size
    make_room = admit(Header(width, height, width * height * (_DECODER_BYTES + TURN_BYTES) + len(data)))
    picture, orientation = _without_metadata(data)
    with pillow.opened(io.BytesIO(picture), "WEBP") as image:
        if image.size != size:
            raise damaged("it contains two different sizes")
        image.load()
        fill_upright(make_room, size, orientation, lambda pixels: pillow.fill(pixels, image))


def _size(data: memoryview) -> tuple[int, int] | None:
    if not is_webp(data) or len(data) < 30:
        return None
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def _without_metadata(data: memoryview) -> tuple[bytes | memoryview, int]:
    """Return the file without metadata, and the orientation in its first EXIF chunk."""
    if bytes(data[12:16]) != b"VP8X":
        return data, UPRIGHT
    kept: list[bytes | memoryview] = []
    orientation, at = UPRIGHT, 12
    while at + 8 <= len(data):  # a name of 4 bytes, a size of 4, the content padded to even
        kind, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if kind == b"EXIF" and orientation == UPRIGHT:
            orientation = orientation_of_exif(data[at + 8 : at + 8 + size])
        if kind not in _METADATA:
            kept.append(data[at:end])
        at = end
    # Clear the header's flags of profile, EXIF and XMP, which were removed.
    kept[0] = bytes(kept[0][:8]) + bytes([kept[0][8] & 0x12]) + bytes(kept[0][9:])
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, orientation
