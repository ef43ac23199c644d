"""Damage of TIFF files by tag, and EXIF blocks, which are TIFF directories too."""

import random
import struct

from tests.faults.fuzz.sizes import Sizes

ORIENTATION, EXIF_DIRECTORY, SUBDIRECTORIES = 274, 34_665, 330
# Sides, bits, compression, photometric, strips, samples, rows, planar, predictor, tiles' sides and places, format.
TAGS = (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347)
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    16,
    32,
    64,
    255,
    32_773,
    32_946,
    50_000,
    65_535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
TYPES = (0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 99, 65_535)
ENTRY_BYTES = 12


def damage_tiff(data: bytes, rng: random.Random, sizes: Sizes) -> bytes:
    """Change one thing in the first directory of a TIFF of either byte order."""
    order = "<" if data[:2] == b"II" else ">"
    changed = bytearray(data.ljust(16, b"\0"))
    (place,) = struct.unpack_from(f"{order}I", changed, 4)
    if place + 2 > len(changed) or rng.random() < 0.05:
        struct.pack_into(f"{order}I", changed, 4, rng.choice((0, 4, 8, len(changed) - 1, len(changed), 2**31)))
        return bytes(changed)
    (count,) = struct.unpack_from(f"{order}H", changed, place)
    end = place + 2 + count * ENTRY_BYTES
    if count == 0 or end + 4 > len(changed) or rng.random() < 0.1:
        struct.pack_into(f"{order}H", changed, place, rng.choice((0, 1, (count + 1) & 0xFFFF, 65_535)))
        return bytes(changed)
    if rng.random() < 0.1:  # the next directory is this one, or nowhere
        struct.pack_into(f"{order}I", changed, end, rng.choice((place, 2**32 - 1, len(changed) - 1)))
        return bytes(changed)
    _change_entry(changed, place + 2 + rng.randrange(count) * ENTRY_BYTES, order, rng)
    return bytes(changed)


def _change_entry(data: bytearray, place: int, order: str, rng: random.Random) -> None:
    what = rng.randrange(5)
    if what == 0:
        struct.pack_into(f"{order}H", data, place, rng.choice(TAGS))
    elif what == 1:
        struct.pack_into(f"{order}H", data, place + 2, rng.choice(TYPES))
    elif what == 2:
        struct.pack_into(f"{order}I", data, place + 4, rng.choice(NUMBERS))
    elif what == 3:
        struct.pack_into(f"{order}I", data, place + 8, rng.choice(NUMBERS))
    else:  # a short number stands in the first two bytes
        struct.pack_into(f"{order}H", data, place + 8, rng.choice(NUMBERS) & 0xFFFF)


def make_exif(rng: random.Random) -> bytes:
    """An EXIF block: an orientation, right or wrong, and entries that lead anywhere."""
    order = rng.choice("<>")
    entries = [
        (
            ORIENTATION,
            rng.choice((3, 3, 3, *TYPES)),
            rng.choice((1, 1, 1, 0, 2**31)),
            rng.choice((*range(1, 9), *NUMBERS)),
        )
    ]
    for _ in range(rng.choice((0, 0, 1, 3, 20))):
        tag = rng.choice((EXIF_DIRECTORY, SUBDIRECTORIES, 271, 306, rng.randrange(65_536)))
        entries.append((tag, rng.choice(TYPES), rng.choice(NUMBERS), rng.choice((8, 8, *NUMBERS))))
    if rng.random() < 0.8:
        entries.sort()
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    count = len(entries) if rng.random() < 0.9 else 65_535
    body = b"".join(_entry(order, *entry) for entry in entries)
    following = struct.pack(f"{order}I", rng.choice((0, 0, 0, 8, 2**32 - 1)))
    return b"Exif\0\0" + head + struct.pack(f"{order}H", count) + body + following


def _entry(order: str, tag: int, kind: int, count: int, value: int) -> bytes:
    if kind == 3 and count == 1:
        return struct.pack(f"{order}HHIHH", tag, kind, count, value & 0xFFFF, 0)
    return struct.pack(f"{order}HHII", tag, kind, count, value)
