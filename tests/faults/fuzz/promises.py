"""Files of a few bytes whose headers promise many pixels."""

import random
import struct
import zlib
from collections.abc import Callable

from tests.faults.fuzz.chunks import SIGNATURE, png_chunk
from tests.faults.fuzz.jpegs import CODES, SCAN, TABLES, segment
from tests.faults.fuzz.sizes import Sizes, up_to

# More than is ever taken, so these cost only a look at the header.
REFUSED = ((60_000, 60_000), (65_535, 65_535), (16_383, 16_383), (100_000_001, 1), (1, 100_000_001))


def promise(rng: random.Random, sizes: Sizes) -> bytes:
    """A header that promises pixels, with little or nothing behind it."""
    maker = rng.choice(MAKERS)
    if rng.random() < 0.3:
        return maker(*rng.choice(REFUSED), rng)
    width = up_to(rng, sizes.promised_pixels)
    return maker(width, max(1, sizes.promised_pixels // width), rng)


def _png(width: int, height: int, rng: random.Random) -> bytes:
    depth, colour = rng.choice(((1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 6), (16, 6)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.choice((0, 1)))
    palette = png_chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(rng.choice((0, 100, 1_000_000)))))
    return SIGNATURE + png_chunk(b"IHDR", header) + palette + pixels + png_chunk(b"IEND", b"")


def _jpeg(width: int, height: int, rng: random.Random) -> bytes:
    """A frame, one code, and a scan without any block."""
    components = rng.choice((1, 3))
    ids = b"".join(
        bytes([number, rng.choice((0x11, 0x22)) if number == 1 else 0x11, 0]) for number in range(1, components + 1)
    )
    frame = struct.pack(">BHHB", 8, height & 0xFFFF, width & 0xFFFF, components) + ids
    codes = b"".join(segment(CODES, bytes([kind, 1]) + bytes(15) + b"\0") for kind in (0x00, 0x10))
    scan = bytes([components]) + b"".join(bytes([number, 0]) for number in range(1, components + 1))
    last = 63 if (kind := rng.choice((0xC0, 0xC2))) == 0xC0 else 0
    return (
        b"\xff\xd8"
        + segment(TABLES, b"\0" + bytes([1] * 64))
        + segment(kind, frame)
        + codes
        + segment(SCAN, scan + bytes([0, last, 0]))
        + bytes(rng.choice((0, 10, 1000)))
        + b"\xff\xd9"
    )


def _webp(width: int, height: int, rng: random.Random) -> bytes:
    width, height = min(width, 16_383), min(height, 16_383)
    if rng.random() < 0.5:  # lossy: a key frame whose partitions are zeros
        body = struct.pack("<I", 0x10 | 10 << 5)[:3] + b"\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)
        chunk = b"VP8 " + struct.pack("<I", len(body)) + body
    else:  # lossless: codes of one symbol, no bit a pixel
        bits = (width - 1) | (height - 1) << 14
        body = (
            b"\x2f" + struct.pack("<I", bits) + rng.choice((bytes(12), b"\x88\x88\x08" + bytes(9), rng.randbytes(12)))
        )
        chunk = b"VP8L" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def _bmp(width: int, height: int, rng: random.Random) -> bytes:
    """Also with run lengths, whose pixels may be skipped."""
    bits, compression, pixels = rng.choice(
        ((24, 0, b""), (1, 0, bytes(8)), (8, 1, b"\0\1"), (8, 1, bytes(64)), (4, 2, b"\0\1"))
    )
    palette = bytes({1: 8, 4: 64, 8: 1024}.get(bits, 0))
    offset = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + palette + pixels


def _tiff(width: int, height: int, rng: random.Random) -> bytes:
    """One strip of a few bytes, in any compression."""
    compression = rng.choice((1, 2, 3, 4, 5, 7, 8, 32_773))
    bits = 1 if compression in (2, 3, 4) else 8
    pixels = rng.choice((bytes(4), b"\0\1" * 200, zlib.compress(bytes(1000)), rng.randbytes(50)))
    entries = [
        *((256, width), (257, height), (258, bits), (259, compression), (262, 1), (273, 8), (277, 1)),
        *((278, rng.choice((height, 1, 2**32 - 1))), (279, len(pixels))),
    ]
    place = 8 + len(pixels) + len(pixels) % 2
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    return b"II*\0" + struct.pack("<I", place) + pixels.ljust(place - 8, b"\0") + directory + bytes(4)


def _gif(width: int, height: int, rng: random.Random) -> bytes:
    size = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    return b"GIF89a" + size + b"\0\0\0," + bytes(4) + size + b"\0\2\0;"


MAKERS: tuple[Callable[[int, int, random.Random], bytes], ...] = (_png, _jpeg, _webp, _bmp, _tiff, _gif)
