"""Writers of small picture files of every kind, from arrays and the standard library alone."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_LETTERS = {1: "B", 2: "B", 7: "B", 3: "H", 4: "I", 12: "d", 16: "Q"}


def colours() -> np.ndarray:
    """A ramp with a red and a blue rectangle: uint8 RGB [48, 64, 3], with both 0 and 255 in it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), np.full_like(x, 60)], -1).astype(np.uint8)
    rgb[10:25, 15:35] = (230, 40, 30)
    rgb[30:42, 40:60] = (20, 60, 220)
    return rgb


def grey() -> np.ndarray:
    """A ramp with rectangles: uint8 [48, 64], with both 0 and 255 in it."""
    values = np.tile(np.linspace(0, 255, WIDTH), (HEIGHT, 1)).astype(np.uint8)
    values[10:25, 15:35] = 200
    values[30:42, 40:60] = 25
    return values


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """A file that Pillow writes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    """One chunk of a PNG file."""
    check = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(pixels: np.ndarray, before: bytes = b"", after: bytes = b"", bits: int = 0, end: bool = True) -> bytes:
    """A PNG file of uint8 or uint16: grey [H, W], grey and opacity [H, W, 2], RGB or RGBA.

    before, after: chunks around the pixels. bits: of a grey of fewer than 8.
    """
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    depth = bits or 8 * pixels.dtype.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    packed = [pack(row, bits) if bits else row.tobytes() for row in rows]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    return b"\x89PNG\r\n\x1a\n" + head + before + content + after + (chunk(b"IEND", b"") if end else b"")


def pack(values: np.ndarray, bits: int) -> bytes:
    """Whole numbers of so many bits side by side, the highest bit first; the last byte is filled up."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(((values.reshape(-1, 1).astype(np.int64) >> places) & 1).astype(np.uint8)).tobytes()


def lzw(data: bytes) -> bytes:
    """TIFF's LZW, without its point: every byte is a code of nine bits, and the table is cleared before it grows."""
    codes = []
    for at in range(0, len(data), 200):
        codes += [256, *data[at : at + 200]]
    return pack(np.array([*codes, 257]), 9)


PACKINGS = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress}


def tiff(
    pixels: np.ndarray,
    photometric: int = 1,
    extras: tuple[int, ...] = (),
    *,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    packing: int = 1,
    tile: int = 0,
    rows: int = HEIGHT,
    bits: int = 0,
    predictor: int = 1,
    tags: dict[int, tuple[int, tuple[Any, ...]]] | None = None,
) -> bytes:
    """A TIFF file of [H, W] or [H, W, samples] of any type.

    tile: side of square tiles, 0 for strips of so many rows. bits: of samples of other sizes than their type's.
    tags: further entries, (type, values) by number.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, samples = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    depth = bits or 8 * pixels.dtype.itemsize
    planes = [pixels[..., number : number + 1] for number in range(samples)] if planar else [pixels]
    segments = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            cuts = [
                padded[top : top + tile, left : left + tile]
                for top in range(0, height, tile)
                for left in range(0, width, tile)
            ]
        else:
            cuts = [plane[top : top + rows] for top in range(0, height, rows)]
        segments += [PACKINGS[packing](_segment(cut, order, bits, predictor)) for cut in cuts]
    head = 16 if big else 8
    places = [head + sum(map(len, segments[:number])) for number in range(len(segments))]
    entries: dict[int, tuple[int, tuple[Any, ...]]] = {
        256: (3, (width,)),
        257: (3, (height,)),
        258: (3, (depth,) * samples),
        259: (3, (packing,)),
        262: (3, (photometric,)),
        277: (3, (samples,)),
        284: (3, (2 if planar else 1,)),
        339: (3, (kind,) * samples),
    }
    if predictor != 1:
        entries[317] = (3, (predictor,))
    if extras:
        entries[338] = (3, extras)
    where, sizes = (4, tuple(places)), (4, tuple(map(len, segments)))
    entries |= {322: (3, (tile,)), 323: (3, (tile,)), 324: where, 325: sizes} if tile else {}
    entries |= {} if tile else {273: where, 278: (3, (rows,)), 279: sizes}
    return _with_directory(b"".join(segments), entries | (tags or {}), order, big)


def _segment(cut: np.ndarray, order: str, bits: int, predictor: int) -> bytes:
    if bits:
        return b"".join(pack(row, bits) for row in cut)
    if predictor == 2:
        whole = cut.view(f"u{cut.dtype.itemsize}")
        cut = np.concatenate([whole[:, :1], np.diff(whole, axis=1)], axis=1)
    if predictor == 3:
        by_byte = np.moveaxis(cut.astype(cut.dtype.newbyteorder(">"))[..., None].view(np.uint8), -1, 1)
        flat = by_byte.reshape(len(cut), -1, cut.shape[2])
        return np.concatenate([flat[:, :1], np.diff(flat, axis=1)], axis=1).tobytes()
    return cut.astype(cut.dtype.newbyteorder(order)).tobytes()


def _with_directory(content: bytes, entries: dict[int, tuple[int, tuple[Any, ...]]], order: str, big: bool) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    head, count, entry_head, place, inline = (16, "Q", "HHQ", "Q", 8) if big else (8, "H", "HHI", "I", 4)
    at = head + len(content)
    extra_at = at + struct.calcsize(f"={count}") + len(entries) * (20 if big else 12) + inline
    directory, extra = [struct.pack(f"{order}{count}", len(entries))], b""
    for number in sorted(entries):
        kind, values = entries[number]
        data = struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values)
        directory.append(struct.pack(f"{order}{entry_head}", number, kind, len(values)))
        if len(data) <= inline:
            directory.append(data.ljust(inline, b"\0"))
        else:
            directory.append(struct.pack(f"{order}{place}", extra_at + len(extra)))
            extra += data
    directory.append(bytes(inline))
    magic = struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at)
    return mark + magic + content + b"".join(directory) + extra


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF directory with an orientation alone."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def xmp(orientation: int) -> bytes:
    """An XMP packet that says an orientation."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


def with_segments(jpeg: bytes, *payloads: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG file with more segments right after its start."""
    added = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload for payload in payloads)
    return jpeg[:2] + added + jpeg[2:]


def with_chunks(webp: bytes, *chunks: tuple[bytes, bytes], flags: int = 0) -> bytes:
    """A WebP file of the extended kind, with more chunks behind its picture."""
    picture = webp[12:]
    parts = [b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]), struct.pack("<I", WIDTH - 1)[:3]]
    parts += [struct.pack("<I", HEIGHT - 1)[:3], picture]
    parts += [name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks]
    body = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(
    pixels: np.ndarray, masks: tuple[int, ...] = (), header: int = 40, *, compression: int = 3, upside: int = 1
) -> bytes:
    """A BMP file of uint16 or uint32 [H, W] with bit fields; upside -1 writes the top row first."""
    height, width = pixels.shape
    size = 8 * pixels.dtype.itemsize
    head = struct.pack("<IiiHHIIiiII", header, width, upside * height, 1, size, compression, 0, 0, 0, 0, 0)
    head += struct.pack(f"<{len(masks)}I", *masks)
    head = head.ljust(header, b"\0")
    rows = [row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in pixels[::-upside]]
    data, at = b"".join(rows), 14 + len(head)
    return b"BM" + struct.pack("<IHHI", at + len(data), 0, 0, at) + head + data


def gif(screen: tuple[int, int], frame: np.ndarray, left: int, top: int, transparent: int | None = None) -> bytes:
    """A GIF file whose first frame, indices of a palette of greys [h, w], is part of its screen (width, height)."""
    palette = bytes(value for number in range(128) for value in (2 * number,) * 3)
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    codes = []
    for at in range(0, frame.size, 100):
        codes += [128, *frame.reshape(-1)[at : at + 100].tolist()]
    bits = "".join(f"{code:08b}"[::-1] for code in [*codes, 129])
    data = bytes(int(bits[at : at + 8].ljust(8, "0")[::-1], 2) for at in range(0, len(bits), 8))
    blocks = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    height, width = frame.shape
    return b"".join(
        (
            b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF6, 0, 0) + palette + control,
            b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x07" + blocks + b"\0;",
        )
    )


# A ramp of 64 x 48 pixels that `irot` and EXIF say to turn to the right; red grows to the right, green downwards. No
# encoder of HEIC is a part of this project.
HEIC_TURNED = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA"
    "AAAERAAAIAAQAAAAAB7AABAAAAAAAAAJQAAgAAAAACgAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp"
    "bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE"
    "ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA"
    "AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEH"
    "BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAMBtZGF0AAAA"
    "kCgBrwngPg6bnk4QdLDGLT6xYzYCm4mFnnL1mTHLQdG6e1lGP9y7Ou25gFzr98ICie4G2HDSvl9BGpT8vMoDbFX4YNTwK0+c06yQk6m0k+LMVi"
    "ZRd0KGsNQCLOQ6OyrYFloSSkwCnWPk+2NuGYpEJEiSUtdVrvTQt9IpIouRsRBsrenHi3ered8IcSBTM1fHwAAAAAZFeGlmAABNTQAqAAAACAAB"
    "ARIAAwAAAAEABgAAAAAAAA=="
)
