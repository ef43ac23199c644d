"""Damage of files that consist of chunks, PNG and WebP, and of BMP, which is a header and pixels."""

import random
import struct
import zlib
from collections.abc import Sequence

from tests.faults.fuzz.sizes import Sizes, up_to

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LENGTHS = (0, 1, 12, 255, 65_535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
# Of an image's side. No product of two that are not tiny lies below the largest image that is taken.
SIDES = (0, 1, 2, 3, 255, 4_095, 16_384, 65_535, 65_536, 10_000_001, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
Chunk = tuple[bytes, bytes]  # kind and data


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def damage_png(data: bytes, rng: random.Random, sizes: Sizes) -> bytes:
    """Change one thing in a PNG; checksums fit in most cases, or the readers would look no further."""
    chunks = _png_chunks(data)
    if not chunks:
        return data
    change = rng.choice((_png_header, _drop, _repeat, _shuffle, _insert, _png_pixels, _edit))
    changed = change(chunks, rng, sizes)
    parts = [png_chunk(kind, body) for kind, body in changed]
    if parts and rng.random() < 0.15:  # a length that lies, or a wrong checksum
        place = rng.randrange(len(parts))
        part = parts[place]
        parts[place] = struct.pack(">I", rng.choice(LENGTHS)) + part[4:] if rng.random() < 0.5 else part[:-4] + bytes(4)
    return SIGNATURE + b"".join(parts)


def _png_chunks(data: bytes) -> list[Chunk]:
    chunks, place = [], len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _png_header(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    header = bytearray(chunks[0][1].ljust(13, b"\0"))
    if rng.random() < 0.4:
        struct.pack_into(">I", header, rng.choice((0, 4)), rng.choice(SIDES))
    else:  # depth, colour type, compression, filter, interlace
        header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 255))
    return [(chunks[0][0], bytes(header)), *chunks[1:]]


def _png_pixels(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    """Pixel data of another length, in many pieces, or none at all."""
    noise = rng.randbytes(rng.choice((0, 1, 100, 50_000)))
    packed = zlib.compress(rng.choice((noise, bytes(up_to(rng, sizes.text_bomb_bytes)))))
    pieces = rng.choice(
        (
            [packed],
            [packed[: len(packed) // 2]],
            [packed[number : number + 1] for number in range(min(len(packed), 200))],
            [b""] * up_to(rng, sizes.entries) + [packed],
            [],
        )
    )
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return [*others[:-1], *((b"IDAT", piece) for piece in pieces), *others[-1:]]


def _drop(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    place = rng.randrange(len(chunks))
    return chunks[:place] + chunks[place + 1 :]


def _repeat(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    place = rng.randrange(len(chunks))
    return chunks[:place] + [chunks[place]] * rng.choice((2, 3, 50)) + chunks[place + 1 :]


def _shuffle(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    return rng.sample(chunks, len(chunks))


def _insert(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    """Put in what most readers do not expect: texts that are large when unpacked, palettes, profiles, animation."""
    bomb = zlib.compress(bytes(up_to(rng, sizes.text_bomb_bytes)), 9)
    new = rng.choice(
        (
            (b"zTXt", b"key\0\0" + bomb),
            (b"iTXt", b"key\0\1\0\0\0" + bomb),
            (b"iCCP", b"key\0\0" + bomb),
            (b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 768, 771)))),
            (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 256, 300)))),
            (b"acTL", struct.pack(">II", rng.choice(LENGTHS), rng.choice(LENGTHS))),
            (b"fcTL", struct.pack(">5I2H2B", *rng.choices(LENGTHS, k=5), 0, 0, 3, 3)),
            (b"fdAT", rng.randbytes(20)),
            (b"eXIf", rng.randbytes(40)),
            (b"gAMA", bytes(4)),
            (b"cHRM", rng.randbytes(7)),
            (b"pHYs", bytes(9)),
            (b"sRGB", b""),
            (b"caBX", rng.randbytes(9)),
            (rng.randbytes(4), rng.randbytes(30)),
        )
    )
    place = rng.randrange(len(chunks) + 1)
    return [*chunks[:place], new, *chunks[place:]]


def _edit(chunks: list[Chunk], rng: random.Random, sizes: Sizes) -> list[Chunk]:
    """Flip a bit, or cut, in one chunk."""
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    if body:
        at = rng.randrange(len(body))
        body = (
            body[:at] if rng.random() < 0.5 else body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]
        )
    return [*chunks[:place], (kind, body), *chunks[place + 1 :]]


def damage_webp(data: bytes, rng: random.Random, sizes: Sizes) -> bytes:
    """Change one thing in a WebP."""
    if len(data) < 30:
        return data
    chunks = _webp_chunks(data)
    if rng.random() < 0.3:  # sizes in the stream's own header: VP8's at 26, VP8L's at 21, VP8X's at 24
        changed = bytearray(data)
        struct.pack_into("<I", changed, rng.choice((21, 24, 26)), rng.choice(LENGTHS))
        return bytes(changed)
    extended = (b"VP8X", bytes([rng.randrange(256), 0, 0, 0]) + rng.choice((bytes(6), b"\xff" * 6, rng.randbytes(6))))
    frame = (b"ANMF", rng.randbytes(16) + b"".join(_webp_chunk(*chunk) for chunk in chunks[:1]))
    others = (extended, frame, (b"ANIM", rng.randbytes(6)), (b"ALPH", rng.randbytes(30)), (b"EXIF", rng.randbytes(30)))
    if rng.random() < 0.5 or not chunks:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(others))
    else:
        chunks = rng.choice((_drop, _repeat, _shuffle, _edit))(chunks, rng, sizes)
    body = b"".join(_webp_chunk(*chunk) for chunk in chunks)
    length = len(body) + 4 if rng.random() < 0.8 else rng.choice(LENGTHS)
    return b"RIFF" + struct.pack("<I", length) + b"WEBP" + body


def _webp_chunks(data: bytes) -> list[Chunk]:
    chunks, place = [], 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return chunks


def _webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def damage_bmp(data: bytes, rng: random.Random, sizes: Sizes) -> bytes:
    """Overwrite one field of a BMP's headers: offset, header's length, sides, planes, depth, compression, colours."""
    changed = bytearray(data.ljust(54, b"\0"))
    place, form, numbers = _choose_bmp_field(rng)
    struct.pack_into(form, changed, place, rng.choice(numbers))
    return bytes(changed)


def _choose_bmp_field(rng: random.Random) -> tuple[int, str, Sequence[int]]:
    return rng.choice(
        (
            (10, "<I", LENGTHS),  # where the pixels begin
            (14, "<I", (0, 12, 16, 40, 52, 56, 64, 108, 124, 2**31)),
            (18, "<I", SIDES),
            (22, "<I", (*SIDES, 2**32 - 8)),  # a negative height means top to bottom
            (26, "<H", (0, 1, 2, 65_535)),
            (28, "<H", (0, 1, 2, 4, 8, 15, 16, 24, 32, 64)),
            (30, "<I", (0, 1, 2, 3, 4, 5, 6, 11)),
            (46, "<I", LENGTHS),
        )
    )
