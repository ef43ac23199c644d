"""Damage of JPEG files by segment."""

import random
import struct

from tests.faults.fuzz.sizes import Sizes, up_to
from tests.faults.fuzz.tiffs import make_exif

START, END, SCAN, COMMENT, EXIF, ADOBE, TABLES, CODES, RESTART = 0xD8, 0xD9, 0xDA, 0xFE, 0xE1, 0xEE, 0xDB, 0xC4, 0xDD
FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA)
SIDES = (0, 1, 7, 8, 65_500, 65_535)
Segment = tuple[int, bytes]  # marker and data; a scan's data goes on to the next segment


def segment(marker: int, data: bytes) -> bytes:
    """A segment with its length."""
    return bytes([0xFF, marker]) + struct.pack(">H", min(len(data) + 2, 65_535)) + data


def damage_jpeg(data: bytes, rng: random.Random, sizes: Sizes) -> bytes:
    """Change one thing in a JPEG."""
    segments = split(data)
    if not segments:
        return data
    change = rng.choice((_frame, _frame, _drop, _repeat, _scans, _insert, _edit, _edit))
    parts = [segment(*item) for item in change(segments, rng, sizes)]
    if parts and rng.random() < 0.15:  # a length that lies
        place = rng.randrange(len(parts))
        parts[place] = parts[place][:2] + rng.choice((b"\0\0", b"\0\1", b"\0\2", b"\xff\xff")) + parts[place][4:]
    end = rng.choice((b"\xff\xd9", b"\xff\xd9", b"\xff\xd9", b"", b"\xff\xd9" + rng.randbytes(50), b"\0\xff\xd9"))
    return b"\xff\xd8" + b"".join(parts) + end


def split(data: bytes) -> list[Segment]:
    """The segments between start and end."""
    segments: list[Segment] = []
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != END:
        marker, (length,) = data[place + 1], struct.unpack_from(">H", data, place + 2)
        end = place + 2 + length
        if marker == SCAN:
            end = _end_of_scan(data, end)
        segments.append((marker, data[place + 4 : end]))
        place = end
    return segments


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker is that is neither an escaped 0xFF nor a restart."""
    while place + 1 < len(data) and not (data[place] == 0xFF and data[place + 1] not in (0, *range(0xD0, 0xD8))):
        place += 1
    return place


def _frame(segments: list[Segment], rng: random.Random, sizes: Sizes) -> list[Segment]:
    """Change the frame's header: kind, precision, sides, number of components, sampling factors, tables."""
    places = [place for place, (marker, _) in enumerate(segments) if marker in FRAMES]
    if not places:
        return segments
    place = rng.choice(places)
    marker, body = segments[place]
    header = bytearray(body.ljust(9, b"\0"))
    what = rng.randrange(5)
    if what == 0:
        marker = rng.choice(FRAMES)
    elif what == 1:
        header[0] = rng.choice((0, 1, 8, 12, 16, 255))
    elif what == 2:
        struct.pack_into(">H", header, rng.choice((1, 3)), rng.choice(SIDES))
    elif what == 3:
        header[5] = rng.choice((0, 1, 2, 3, 4, 5, 255))
    else:
        header[rng.randrange(6, len(header))] = rng.choice((0, 1, 0x11, 0x22, 0x14, 0x41, 0x44, 0xFF))
    return [*segments[:place], (marker, bytes(header)), *segments[place + 1 :]]


def _drop(segments: list[Segment], rng: random.Random, sizes: Sizes) -> list[Segment]:
    place = rng.randrange(len(segments))
    return segments[:place] + segments[place + 1 :]


def _repeat(segments: list[Segment], rng: random.Random, sizes: Sizes) -> list[Segment]:
    place = rng.randrange(len(segments))
    return [*segments[:place], segments[place], rng.choice(segments), *segments[place + 1 :]]


def _scans(segments: list[Segment], rng: random.Random, sizes: Sizes) -> list[Segment]:
    """Repeat scans: a progressive file may go over all of its blocks as often as it says."""
    scans = [item for item in segments if item[0] == SCAN]
    return segments + scans[-1:] * up_to(rng, sizes.scans)


def _insert(segments: list[Segment], rng: random.Random, sizes: Sizes) -> list[Segment]:
    new = rng.choice(
        (
            (EXIF, make_exif(rng)[:65_000]),
            (EXIF, b"http://ns.adobe.com/xap/1.0/\0" + rng.randbytes(100)),
            (COMMENT, bytes(rng.choice((0, 65_533)))),
            (ADOBE, b"Adobe" + rng.randbytes(7)),
            (0xE0, b"JFIF\0" + rng.randbytes(rng.choice((0, 3, 9)))),
            (0xE2, b"MPF\0" + rng.randbytes(60)),
            (0xE2, b"ICC_PROFILE\0" + bytes([rng.randrange(256), rng.randrange(256)]) + rng.randbytes(50)),
            (0xED, b"Photoshop 3.0\08BIM" + rng.randbytes(40)),
            (RESTART, struct.pack(">H", rng.choice((0, 1, 65_535)))),
            (TABLES, rng.randbytes(rng.choice((0, 1, 65, 129)))),
            (CODES, rng.randbytes(rng.choice((1, 17, 30)))),
            (0xCC, rng.randbytes(4)),
        )
    )
    place = rng.randrange(len(segments) + 1)
    return [*segments[:place], new, *segments[place:]]


def _edit(segments: list[Segment], rng: random.Random, sizes: Sizes) -> list[Segment]:
    """Flip bits, or cut, in one segment."""
    place = rng.randrange(len(segments))
    marker, body = segments[place]
    if not body:
        return segments
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        changed = changed[: rng.randrange(len(body))]
    return [*segments[:place], (marker, bytes(changed)), *segments[place + 1 :]]
