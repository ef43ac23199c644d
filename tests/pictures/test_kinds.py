"""Files of every kind show the one picture that a viewer shows."""

import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from polywand_pictures import UnreadableError, ValueRange, read_picture
from tests.pictures import writers
from tests.pictures.writers import HEIGHT, WIDTH, bmp, chunk, colours, gif, grey, png, saved, tiff

RGB, GREY = colours(), grey()
GREY3 = np.repeat(GREY[..., None], 3, 2)
OPACITY = np.tile(np.linspace(0, 255, WIDTH), (HEIGHT, 1)).astype(np.uint8)
HIT = int(GREY[12, 20])
DTYPES = {"uint8": 1, "uint16": 257, "uint32": 16_843_009, "int16": 32767 / 255, "int32": 8_000_000, "float32": 1 / 255}


def on_white(pixels: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    part = opacity[..., None] / 255
    return np.rint(pixels * part + 255 * (1 - part)).astype(np.uint8)


def difference(data: bytes, right: np.ndarray, said: ValueRange | None = None) -> float:
    """The largest one of any pixel."""
    pixels = read_picture(data, said)
    assert pixels.shape == right.shape
    assert pixels.dtype == np.uint8
    return float(np.abs(pixels.astype(int) - right).max())


def scaled(pixels: np.ndarray, dtype: str) -> np.ndarray:
    """The same picture in values of another type, over all of its range."""
    return (pixels.astype(np.float64) * DTYPES[dtype]).astype(dtype)


LAYOUTS = [
    dict(zip(("planar", "order", "packing", "tile", "big"), values, strict=True))
    for values in itertools.product((False, True), "<>", (1, 5, 8), (0, 16), (False, True))
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
def test_tiff_is_the_same_picture_however_its_samples_lie(layout):
    for dtype in ("uint8", "uint16", "float32"):
        assert difference(tiff(scaled(RGB, dtype), 2, **layout), RGB) <= 1
        with_opacity = scaled(np.dstack([RGB, OPACITY]), dtype)
        assert difference(tiff(with_opacity, 2, (2,), **layout), on_white(RGB, OPACITY)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, HEIGHT])
def test_grey_and_colour_tiff_of_every_type_are_read(dtype, rows):
    assert difference(tiff(scaled(GREY, dtype), rows=rows), GREY3) <= 1
    assert difference(tiff(scaled(RGB, dtype), 2, rows=rows, order=">"), RGB) <= 1


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint64", "int8"])
def test_rarer_types_are_read(dtype):
    values = (GREY / 255).astype(dtype) if dtype.startswith("f") else (GREY.astype(int) - 128).astype(dtype)
    if dtype == "uint64":
        values = GREY.astype(dtype) << 40
    assert difference(tiff(values), GREY3) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32])
def test_white_is_zero_whatever_the_bits(bits):
    most = (1 << bits) - 1
    values = np.rint(GREY / 255 * most).astype(np.int64)
    right = np.repeat(np.rint(values / most * 255)[..., None], 3, 2).astype(np.uint8)
    kind = f"u{max(1, 1 << (bits - 1).bit_length() >> 3)}"
    packed = {} if bits in (8, 16, 32) else {"bits": bits}
    assert difference(tiff((most - values).astype(kind), 0, **packed), right) <= 1
    assert difference(tiff(values.astype(kind), 1, **packed), right) <= 1


@pytest.mark.parametrize("predictor", [2, 3])
@pytest.mark.parametrize("tile", [0, 16, 32])
@pytest.mark.parametrize("planar", [False, True])
def test_differences_are_undone(predictor, tile, planar):
    for dtype in ("float32",) if predictor == 3 else ("uint8", "uint16", "uint32"):
        data = tiff(scaled(RGB, dtype), 2, predictor=predictor, tile=tile, planar=planar, packing=8)
        assert difference(data, RGB) <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("colour", ["grey", "colour"])
def test_premultiplied_opacity_is_laid_on_white(dtype, colour):
    pixels, photometric = (GREY[..., None], 1) if colour == "grey" else (RGB, 2)
    premultiplied = np.rint(pixels * (OPACITY[..., None] / 255)).astype(np.uint8)
    data = tiff(scaled(np.dstack([premultiplied, OPACITY]), dtype), photometric, (1,))
    assert difference(data, on_white(GREY3 if colour == "grey" else RGB, OPACITY)) <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("photometric", "extras"), [(2, (0,)), (2, (0, 0)), (2, (0, 0, 0)), (1, (0,)), (1, (0, 0)), (1, (0, 0, 0))]
)
def test_bands_beside_the_colours_are_no_opacity(dtype, photometric, extras):
    """Infrared, say; three bands or more without colours are shown as red, green and blue, as maps do."""
    first, right = (RGB, RGB) if photometric == 2 or len(extras) > 1 else (GREY[..., None], GREY3)
    more = len(extras) - (2 if photometric == 1 and len(extras) > 1 else 0)
    data = tiff(scaled(np.dstack([first, *[255 - GREY] * more]), dtype), photometric, extras)
    assert difference(data, right) <= 1


def test_opacity_behind_other_bands_is_found():
    data = tiff(np.dstack([RGB, GREY, OPACITY]), 2, (0, 2))
    assert difference(data, on_white(RGB, OPACITY)) <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_of_cmyk_is_colour(dtype, planar):
    inks = 255 - RGB
    data = tiff(scaled(np.dstack([inks, np.zeros_like(GREY)]), dtype), 5, planar=planar)
    assert difference(data, RGB) <= 1


def test_tiff_of_lab_is_colour():
    """D50, as colour management has it: a grey stays one, and red is red."""
    lab = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    lab[..., 0] = 136  # L* 53.4
    lab[10:20, 10:20] = (138, 81, 70)  # about sRGB's red
    pixels = read_picture(tiff(lab, 8))
    assert np.ptp(pixels[0, 0].astype(int)) <= 2
    assert pixels[0, 0, 0] == pytest.approx(127, abs=4)
    red = pixels[15, 15].astype(int)
    assert red[0] > 230
    assert red[1:].max() < 60


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_tiff_are_read(bits):
    count = 1 << bits
    palette = np.stack([np.linspace(0, 255, count), np.linspace(255, 0, count), np.full(count, 60)]).astype(np.uint8)
    indices = np.tile(np.arange(WIDTH) * count // WIDTH, (HEIGHT, 1)).astype(np.uint8)
    tags = {320: (3, tuple(int(value) * 257 for value in palette.reshape(-1)))}
    data = tiff(indices, 3, bits=0 if bits == 8 else bits, tags=tags)
    assert difference(data, palette.T[indices]) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", ["grey", "grey and opacity", "colours", "colours and opacity"])
def test_png_of_every_shape_is_laid_on_white(dtype, shape):
    pixels, right = (GREY, GREY3) if shape.startswith("grey") else (RGB, RGB)
    if "opacity" in shape:
        pixels, right = np.dstack([pixels, OPACITY]), on_white(right, OPACITY)
    assert difference(png(pixels.astype(dtype) * (257 if dtype == np.uint16 else 1)), right) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_one_transparent_grey_of_a_png_is_white(bits):
    most = (1 << bits) - 1
    values = (GREY.astype(int) * most // 255).astype(np.uint16 if bits == 16 else np.uint8)
    hit = int(values[12, 20]) if bits > 1 else 0
    right = np.repeat(np.where(values == hit, 255, np.rint(values / most * 255))[..., None], 3, 2)
    data = png(values, chunk(b"tRNS", hit.to_bytes(2, "big")), bits=bits if bits < 8 else 0)
    assert difference(data, right) <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_one_transparent_colour_of_a_png_is_white(dtype):
    factor = 257 if dtype == np.uint16 else 1
    key = RGB[12, 20].astype(np.uint16) * factor
    right = np.where((RGB[12, 20] == RGB).all(2, keepdims=True), 255, RGB)
    assert difference(png(RGB.astype(dtype) * factor, chunk(b"tRNS", key.astype(">u2").tobytes())), right) == 0


def test_transparency_of_a_16_bit_png_is_exact():
    """A grey that differs from the transparent one in the lower eight bits stays."""
    values = np.full((8, 8), 30_000, np.uint16)
    values[:, 4:] = 30_001
    values[0, 0] = 65_535
    pixels = read_picture(png(values, chunk(b"tRNS", (30_000).to_bytes(2, "big"))))
    assert pixels[4, 0].tolist() == [255] * 3
    assert pixels[4, 5].tolist() == [117] * 3


def test_palettes_with_opacities_are_laid_on_white():
    image = Image.fromarray(RGB).quantize(16)
    palette = np.array(image.getpalette()[:48]).reshape(-1, 3)
    opacity = np.linspace(0, 255, 16).astype(np.uint8)
    indices = np.asarray(image)
    data = saved_image(image, "PNG", transparency=bytes(opacity))
    assert difference(data, on_white(palette, opacity)[indices]) <= 1


def saved_image(image: Image.Image, kind: str, **options) -> bytes:
    stream = writers.io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


FIELDS = {
    "red first": (0xFF, 0xFF00, 0xFF0000),
    "blue first": (0xFF0000, 0xFF00, 0xFF),
    "high bytes": (0xFF000000, 0xFF0000, 0xFF00),
    "green first": (0xFF00, 0xFF, 0xFF0000),
    "ten bits": (0x3FF00000, 0xFFC00, 0x3FF),
    "565": (0xF800, 0x7E0, 0x1F),
    "565, blue first": (0x1F, 0x7E0, 0xF800),
    "555": (0x7C00, 0x3E0, 0x1F),
    "444": (0xF00, 0xF0, 0xF),
}


def fields(pixels: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
    """Values [H, W, n] of 8 bits in the fields that the masks say, in 16 bits where they fit."""
    values = np.zeros(pixels.shape[:2], np.uint64)
    for number, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1
        values |= np.rint(pixels[..., number] / 255 * (mask >> shift)).astype(np.uint64) << np.uint64(shift)
    return values.astype(np.uint16 if max(masks) <= 0xFFFF else np.uint32)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("upside", [1, -1])
def test_bit_fields_of_bmp_are_read(name, header, upside):
    masks = FIELDS[name]
    fewest = min(bin(mask).count("1") for mask in masks)
    data = bmp(fields(RGB, masks), masks, header, upside=upside)
    assert difference(data, RGB) <= 255 / ((1 << fewest) - 1) / 2 + 1


@pytest.mark.parametrize("masks", [(0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF000000, 0xFF0000, 0xFF00, 0xFF)])
@pytest.mark.parametrize("header", [56, 108, 124])
def test_opacity_of_bmp_is_laid_on_white_unless_it_is_empty(masks, header):
    assert difference(bmp(fields(np.dstack([RGB, OPACITY]), masks), masks, header), on_white(RGB, OPACITY)) <= 1
    assert difference(bmp(fields(np.dstack([RGB, np.zeros_like(GREY)]), masks), masks, header), RGB) == 0


def test_bmp_of_16_bits_without_fields_has_5_of_each():
    assert difference(bmp(fields(RGB, FIELDS["555"]), compression=0), RGB) <= 5


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_of_a_palette_is_read(bits):
    count = 1 << bits
    palette = np.stack([np.linspace(0, 255, count)] * 3 + [np.zeros(count)], axis=1).astype(np.uint8)
    indices = np.tile(np.arange(WIDTH) * count // WIDTH, (HEIGHT, 1))
    rows = b"".join(writers.pack(row, bits).ljust(-(-WIDTH * bits // 32) * 4, b"\0") for row in indices[::-1])
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, 0, 0, 0, 0, count, 0)
    at = 14 + len(head) + palette.nbytes
    data = b"BM" + struct.pack("<IHHI", at + len(rows), 0, 0, at) + head + palette.tobytes() + rows
    assert difference(data, palette[indices][..., :3]) == 0


def test_the_first_frame_of_a_gif_lies_on_its_screen():
    """What the frame does not cover is transparent, and so is the one index that says so."""
    frame = np.full((10, 12), 50, np.uint8)
    frame[3, 4] = 9
    pixels = read_picture(gif((30, 20), frame, 5, 6, transparent=9))
    right = np.full((20, 30, 3), 255, np.uint8)
    right[6:16, 5:17] = 100
    right[9, 9] = 255
    assert np.array_equal(pixels, right)
    assert np.array_equal(read_picture(gif((30, 20), frame, 5, 6))[9, 9], [18] * 3)


def test_of_several_pictures_the_first_is_read():
    frames = [Image.fromarray(np.full((20, 30), value, np.uint8)) for value in (50, 100, 200)]
    for kind, options in (("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = saved_image(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert read_picture(data)[5, 5].tolist() == pytest.approx([50] * 3, abs=1), kind
    for kind in ("AVIF", "MPO"):
        data = saved_image(frames[0], kind, save_all=True, append_images=frames[1:])
        assert read_picture(data)[5, 5].tolist() == pytest.approx([50] * 3, abs=3), kind


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_is_read(mode):
    image = Image.fromarray(np.dstack([RGB, OPACITY])).convert(mode)
    right = {"RGB": RGB, "RGBA": on_white(RGB, OPACITY), "L": np.asarray(image.convert("RGB"))}[mode]
    pixels = read_picture(saved_image(image, "AVIF", quality=100, subsampling="4:4:4"))
    assert np.abs(pixels.astype(int) - right).mean() < 3


def jpeg(**options) -> bytes:
    return saved(np.kron(RGB, np.ones((4, 4, 1), np.uint8)), "JPEG", quality=95, **options)


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 4},
    "full chroma": {"subsampling": 0},
    "small chroma": {"subsampling": 2},
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9", b"\xff\xd9and more"])
def test_a_part_of_a_jpeg_is_damaged_whatever_it_ends_with(name, part, end):
    whole = jpeg(**JPEGS[name])
    begin = whole.index(b"\xff\xda") + 14
    cut = begin + int((len(whole) - begin) * part)
    with pytest.raises(UnreadableError, match="damaged or truncated"):
        read_picture(whole[:cut] + end)


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_bytes_inside_is_damaged(name):
    whole = jpeg(**JPEGS[name])
    middle = len(whole) * 2 // 3
    with pytest.raises(UnreadableError, match="damaged or truncated"):
        read_picture(whole[:middle] + whole[middle + 300 :])


def in_scans(scans: int) -> bytes:
    """A JPEG file with a scan for each component, and as many of the three."""
    planes = [saved_image(band, "JPEG", quality=95) for band in Image.fromarray(RGB).convert("YCbCr").split()]
    begins = [plane.index(b"\xff\xda") for plane in planes]
    frame = planes[0].index(b"\xff\xc0")
    head = planes[0][: frame + 2] + struct.pack(">HBHHB", 17, 8, HEIGHT, WIDTH, 3)
    head += b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3)) + planes[0][frame + 13 : begins[0]]
    bodies = [plane[begin + 6 : -2] for plane, begin in zip(planes, begins, strict=True)]
    parts = [b"\xff\xda\0\x08\1" + bytes([number]) + body for number, body in enumerate(bodies, 1)]
    return head + b"".join(parts[:scans]) + b"\xff\xd9"


def test_a_jpeg_that_lacks_the_scan_of_a_component_is_damaged():
    assert np.abs(read_picture(in_scans(3)).astype(int) - RGB).mean() < 3
    for scans in (1, 2):
        with pytest.raises(UnreadableError, match="of 3 components"):
            read_picture(in_scans(scans))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_half_of_a_grey_or_cmyk_jpeg_is_damaged(mode):
    whole = saved_image(Image.fromarray(np.kron(RGB, np.ones((4, 4, 1), np.uint8))).convert(mode), "JPEG")
    read_picture(whole)
    with pytest.raises(UnreadableError, match="damaged or truncated"):
        read_picture(whole[: len(whole) * 2 // 3] + b"\xff\xd9")


def test_bytes_behind_the_end_of_a_jpeg_do_not_matter():
    """Phones put films and depth maps there, in which anything may stand, such as what scans begin with."""
    right = read_picture(jpeg())
    for tail in (b"\0", b"\xff\xd9", b"\xff\xda" * 3000, jpeg(progressive=True) * 3):
        assert difference(jpeg() + tail, right) == 0


def test_filling_before_the_end_of_a_jpeg_does_not_matter():
    data = jpeg(restart_marker_blocks=4)
    assert difference(data[:-2] + bytes(100) + data[-2:], read_picture(data)) == 0


def test_cmyk_jpegs_are_as_adobe_writes_them():
    inks = np.dstack([255 - RGB, np.zeros_like(GREY)])
    data = saved_image(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(read_picture(data).astype(int) - RGB).mean() < 3


NOT_READ = {
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "Photoshop": b"8BPS\0\1" + bytes(50),
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7" + bytes(50),
    "DICOM": bytes(128) + b"DICM" + bytes(50),
    "DNG": tiff(RGB, 2, tags={50706: (1, (1, 4, 0, 0))}),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(50),
    "CR3": b"\0\0\0\x18ftypcrx " + bytes(50),
    "camera raw": tiff(GREY, 32803),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(50),
    "Radiance HDR": b"#?RADIANCE\n" + bytes(50),
    "PNM": b"P6\n2 2\n255\n" + bytes(12),
    "video": b"\0\0\0\x18ftypisom" + bytes(50),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_read_is_named_and_so_is_what_to_do(name):
    with pytest.raises(UnreadableError, match=f"{name}.*save it as PNG or JPEG"):
        read_picture(NOT_READ[name])


@pytest.mark.parametrize(
    "data",
    [b"\0" * 40, b"hello, this is no picture at all", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP", b"\xff\xd8"],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(UnreadableError):
        read_picture(data)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [(4, 12, "12 bits"), (1, 0xC3, "lossless"), (1, 0xC5, "hierarchical"), (9, 2, "2 comp")],
)
def test_jpegs_of_rare_kinds_are_named(place, value, words):
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + place] = value
    with pytest.raises(UnreadableError, match=f"{words}.*are not read: save it as PNG"):
        read_picture(bytes(data))


DAMAGED = {
    "a palette PNG without its palette": png(GREY).replace(
        chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0)),
        chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0)),
    ),
    "a TIFF with an empty tag": tiff(RGB, 2, tags={256: (3, ())}, planar=True),
    "a TIFF of samples of different bits": tiff(RGB, 2, tags={258: (3, (5, 6, 5))}),
    "a TIFF of 1000 samples": tiff(RGB, 2, tags={277: (3, (1000,))}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_told_in_words(name):
    with pytest.raises(UnreadableError) as caught:
        read_picture(DAMAGED[name])
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        tiff(scaled(RGB, "uint16"), 2),
        tiff(scaled(RGB, "uint16"), 2, planar=True, packing=8),
        tiff(scaled(RGB, "float32"), 2, packing=5, tile=16),
        png(scaled(RGB, "uint16")),
        png(RGB),
        bmp(fields(RGB, FIELDS["red first"]), FIELDS["red first"]),
        saved(RGB, "AVIF"),
        saved(RGB, "WEBP"),
        saved(GREY, "GIF"),
        tiff(RGB, 2),
    ],
    ids=lambda data: "",
)
def test_half_of_a_file_is_damaged(data):
    with pytest.raises(UnreadableError, match="damaged"):
        read_picture(data[: len(data) // 2])


def test_sixteen_bits_are_read_as_opencv_writes_them():
    for extension in (".png", ".tiff"):
        data = cv2.imencode(extension, scaled(RGB, "uint16")[..., ::-1])[1].tobytes()
        assert difference(data, RGB) == 0
