"""What can be known of a JPEG file without decoding it: its size, its kind, its turn, and how many scans it has."""

from dataclasses import dataclass

from polywand_server.images.orientation import UPRIGHT, orientation_of_tiff

START = b"\xff\xd8"
END = b"\xff\xd9"
# Segments before the frame header at most: an honest file has some dozen, one with a large colour profile some more.
MAX_SEGMENTS = 512
_START_OF_SCAN = b"\xff\xda"
_EXIF = b"Exif\0\0"
# Baseline, extended sequential and progressive, by Huffman coding (ITU-T T.81, table B.1).
_READABLE_FRAMES = (0xC0, 0xC1, 0xC2)
_FRAMES = (*_READABLE_FRAMES, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_STANDALONE = (0x01, *range(0xD0, 0xD8))
# So much is searched in one go; the interpreter is free between two of them.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """width, height: before the turn. is_common: grey or colour, of a kind that every reader has."""

    width: int
    height: int
    is_common: bool
    orientation: int


def read_header(data: memoryview) -> JpegHeader | None:
    """Read the frame header of a JPEG file; None when it is none, or none that is simple to read."""
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
        if size < 2 or marker == 0xDA:
            return None
        if marker in _FRAMES:
            return _frame(marker, content, orientation)
        if marker == 0xE1 and bytes(content[:6]) == _EXIF and orientation == UPRIGHT:
            orientation = orientation_of_tiff(content[6:])
        at += 2 + size
    return None


def count_scans(data: memoryview, most: int) -> int:
    """Count the scans, or more than there are (a preview inside the file has some, too), up to one more than `most`.

    Within a scan's data the marker cannot stand, as FF is followed by 00 there.
    """
    scans = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        scans += bytes(data[start : start + _CHUNK_BYTES + 1]).count(_START_OF_SCAN)
        if scans > most:
            break
    return scans


def _frame(marker: int, content: memoryview, orientation: int) -> JpegHeader | None:
    if len(content) < 6:
        return None
    precision, height, width = content[0], int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    components = content[5]
    is_common = marker in _READABLE_FRAMES and precision == 8 and components in (1, 3)
    return JpegHeader(width, height, is_common, orientation)
