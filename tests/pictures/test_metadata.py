"""EXIF alone says how a picture was held; and nothing beside the pixels makes sound pixels unreadable."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from polywand_pictures import UnreadableError, read_picture
from tests.pictures.writers import (
    HEIC_TURNED,
    XMP_HEAD,
    chunk,
    colours,
    exif,
    png,
    saved,
    tiff,
    with_chunks,
    with_segments,
    xmp,
)

RGB = colours()
JPEG = saved(RGB, "JPEG", quality=95, subsampling=0)
WEBP = saved(RGB, "WEBP", lossless=True)
# As numpy turns what a camera wrote, by the value of its tag.
UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def right_of(orientation: int) -> np.ndarray:
    return UPRIGHT.get(orientation, lambda pixels: pixels)(RGB)


def is_shown(data: bytes, right: np.ndarray = RGB) -> bool:
    pixels = read_picture(data)
    return pixels.shape == right.shape and float(np.abs(pixels.astype(int) - right).mean()) < 2


def directory(orientation: int) -> dict[int, tuple[int, tuple[int, ...]]]:
    return {274: (3, (orientation,))}


WITH_EXIF = {
    "JPEG": lambda value: with_segments(JPEG, b"Exif\0\0" + exif(value)),
    "JPEG, big-endian": lambda value: with_segments(JPEG, b"Exif\0\0" + exif(value, ">")),
    "JPEG, after XMP": lambda value: with_segments(JPEG, XMP_HEAD + xmp(3), b"Exif\0\0" + exif(value)),
    "JPEG, before XMP": lambda value: with_segments(JPEG, b"Exif\0\0" + exif(value), XMP_HEAD + xmp(3)),
    "PNG, before its pixels": lambda value: png(RGB, chunk(b"eXIf", exif(value))),
    "PNG, after its pixels": lambda value: png(RGB, after=chunk(b"eXIf", exif(value))),
    "PNG of 16 bits": lambda value: png(RGB.astype(np.uint16) * 257, chunk(b"eXIf", exif(value))),
    "WebP": lambda value: with_chunks(WEBP, (b"EXIF", exif(value)), flags=8),
    "WebP, with a name": lambda value: with_chunks(WEBP, (b"EXIF", b"Exif\0\0" + exif(value)), flags=8),
    "WebP, with XMP": lambda value: with_chunks(WEBP, (b"XMP ", xmp(3)), (b"EXIF", exif(value)), flags=12),
    "TIFF": lambda value: tiff(RGB, 2, tags=directory(value)),
    "big-endian TIFF": lambda value: tiff(RGB, 2, order=">", tags=directory(value)),
    "BigTIFF": lambda value: tiff(RGB, 2, big=True, tags=directory(value)),
    "planar TIFF": lambda value: tiff(RGB, 2, planar=True, tags=directory(value)),
    "packed TIFF": lambda value: tiff(RGB, 2, packing=8, tile=16, tags=directory(value)),
    "TIFF, with XMP": lambda value: tiff(RGB, 2, tags=directory(value) | {700: (1, tuple(xmp(3)))}),
}


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", WITH_EXIF)
def test_pictures_are_turned_by_their_exif_and_values_that_mean_nothing_are_upright(name, orientation):
    assert is_shown(WITH_EXIF[name](orientation), right_of(orientation))


@pytest.mark.parametrize("name", ["AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_boxes_of_avif_turn_once(name, orientation):
    """The writer says it in the boxes and in EXIF."""
    stream, tags = io.BytesIO(), Image.Exif()
    tags[274] = orientation
    tags[271] = "a maker"
    Image.fromarray(RGB).save(stream, name, quality=100, subsampling="4:4:4", exif=tags)
    pixels = read_picture(stream.getvalue())
    assert pixels.shape == right_of(orientation).shape
    assert np.abs(pixels.astype(int) - right_of(orientation)).mean() < 3


WITHOUT_EXIF = {
    "XMP of a JPEG": with_segments(JPEG, XMP_HEAD + xmp(6)),
    "XMP of a PNG": png(RGB, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))),
    "XMP of a WebP": with_chunks(WEBP, (b"XMP ", xmp(6)), flags=4),
    "XMP of a TIFF": tiff(RGB, 2, tags={700: (1, tuple(xmp(6)))}),
    "text of a PNG": png(
        RGB, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (32, (b"Exif\0\0" + exif(6)).hex().encode()))
    ),
    "another segment of a JPEG": with_segments(JPEG, b"Exif\0\0" + exif(6), marker=0xE3),
}


@pytest.mark.parametrize("name", WITHOUT_EXIF)
def test_nothing_but_exif_turns_a_picture(name):
    assert is_shown(WITHOUT_EXIF[name])


BROKEN_EXIF = {
    "short": b"\0\x08\0\2\1\x12\0\3",
    "empty": b"",
    "of noise": bytes(range(256)) * 4,
    "that leads out of itself": b"II*\0\xff\xff\xff\x7f" + bytes(20),
    "in a circle": b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
    "with too many entries": b"MM\0*\0\0\0\x08\xff\xff" + bytes(100),
    "of a wrong type": struct.pack("<4sIHHHII", b"II*\0", 8, 1, 0x112, 5, 1, 0xFFFFFF),
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_is_overlooked(name):
    broken = BROKEN_EXIF[name]
    assert is_shown(with_segments(JPEG, b"Exif\0\0" + broken))
    assert is_shown(png(RGB, chunk(b"eXIf", broken)))
    assert is_shown(png(RGB, after=chunk(b"eXIf", broken)))
    assert is_shown(with_chunks(WEBP, (b"EXIF", broken), flags=8))
    assert is_shown(tiff(RGB, 2, tags={34665: (4, (2**31,)), 330: (4, (2**31, 5))}))
    if broken:
        stream = io.BytesIO()
        Image.fromarray(RGB).save(
            stream, "AVIF", quality=100, subsampling="4:4:4", exif=b"Exif\0\0" + exif(1) + b"x" * len(broken)
        )
        whole = stream.getvalue()
        assert is_shown(whole.replace(exif(1) + b"x" * len(broken), broken.ljust(len(exif(1)) + len(broken), b"\0")))


LONG = zlib.compress(b"node " * 2_000_000)
CHUNKS = {
    "long text": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "long international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "plain long text": chunk(b"tEXt", b"parameters\0" + b"word " * 500_000),
    "much text": chunk(b"tEXt", b"key\0word") * 2000,
    "a bomb of a profile": chunk(b"iCCP", b"icc\0\0" + LONG),
    "a broken profile": chunk(b"iCCP", b"icc\0\0not compressed"),
    "a broken text": chunk(b"zTXt", b"key\0\0not compressed"),
    "text without a key": chunk(b"iTXt", b""),
    "an unknown chunk": chunk(b"prVt", b"anything"),
    "a wrong checksum": chunk(b"tEXt", b"key\0word", crc=1),
    "a wrong time": chunk(b"tIME", b"\0"),
    "wrong sizes": chunk(b"pHYs", b"") + chunk(b"gAMA", b"") + chunk(b"cHRM", b"\1") + chunk(b"sRGB", b""),
    "frames that are not there": chunk(b"acTL", struct.pack(">II", 3, 0)),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("bits", [8, 16])
def test_chunks_beside_the_pixels_do_not_matter(name, bits):
    pixels = RGB.astype(np.uint16) * 257 if bits == 16 else RGB
    assert is_shown(png(pixels, CHUNKS[name]))
    assert is_shown(png(pixels, after=CHUNKS[name]))


def test_a_png_without_its_last_chunk_is_whole():
    assert is_shown(png(RGB, end=False))


@pytest.mark.parametrize("content", [b"", b"not a profile", bytes(60_000)])
def test_profiles_of_other_formats_do_not_matter(content):
    assert is_shown(with_segments(JPEG, b"ICC_PROFILE\0\1\1" + content, marker=0xE2))
    assert is_shown(with_segments(JPEG, b"ICC_PROFILE\0\7\3" + content, marker=0xE2))
    assert is_shown(with_chunks(WEBP, (b"ICCP", content), flags=32))
    assert is_shown(tiff(RGB, 2, tags={34675: (7, tuple(content[:100]))}))


def test_broken_xmp_does_not_matter():
    for packet in (b"", b"<x:xmpmeta", b"\xff\xfe\0", b"<!DOCTYPE a [<!ENTITY b 'c'>]>&b;" * 100):
        assert is_shown(with_segments(JPEG, XMP_HEAD + packet))
        assert is_shown(with_chunks(WEBP, (b"XMP ", packet), flags=4))
        assert is_shown(png(RGB, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)))
        assert is_shown(tiff(RGB, 2, tags={700: (1, tuple(packet) or (0,))}))


def test_many_segments_before_a_photo_do_not_matter():
    assert is_shown(with_segments(JPEG, *[b"\0" * 1000] * 60, marker=0xE5))


def test_exif_whose_entries_lead_to_the_same_bytes_costs_nothing():
    """It is read on the service's event loop."""
    entries = b"".join(struct.pack("<HHII", 0x112, 1, 60_000, 8) for _ in range(500))
    block = b"II*\0" + struct.pack("<IH", 8, 500) + entries + bytes(59_000)
    data = with_segments(JPEG, b"Exif\0\0" + block[:65_000])
    tracemalloc.start()
    try:
        assert is_shown(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_boxes_of_heic_turn_once():
    """The file, 64 x 48 before the turn, says it in its boxes and in EXIF."""
    pytest.importorskip("pi_heif")
    pixels = read_picture(HEIC_TURNED)
    assert pixels.shape == (64, 48, 3)
    assert pixels[0, -1, :2].max() < 30  # the ramps begin in the upper right corner
    assert pixels[-1, 0, :2].min() > 230


def test_without_its_decoder_a_heic_file_says_what_is_lacking(monkeypatch):
    monkeypatch.setattr("polywand_pictures.heif.pi_heif", None)
    with pytest.raises(UnreadableError, match="extra `heic`"):
        read_picture(HEIC_TURNED)
