"""Image files: made by Pillow in many formats, then damaged by segment, chunk, tag, or blindly."""

import io
import math
import random
from typing import Any

from PIL import Image

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz.case import DETECT, INTERACT, Await, Case, Send
from tests.faults.fuzz.chunks import damage_bmp, damage_png, damage_webp
from tests.faults.fuzz.jpegs import damage_jpeg
from tests.faults.fuzz.promises import promise
from tests.faults.fuzz.sizes import Sizes
from tests.faults.fuzz.tiffs import damage_tiff, make_exif

LARGEST_SIDE = 120
# Format, mode, options of Pillow. The last ones are not read by the service.
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *[("JPEG", mode, {"quality": 30}) for mode in ("RGB", "L", "CMYK")],
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"subsampling": 0, "restart_marker_blocks": 1}),
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("WEBP", mode, {}) for mode in ("RGB", "RGBA")],
    ("WEBP", "RGBA", {"lossless": True}),
    *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")],
    *[("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB")],
    *[("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
    *[("TIFF", "1", {"compression": name}) for name in ("tiff_ccitt", "group3", "group4")],
    ("GIF", "P", {}),
    *[("AVIF", mode, {"quality": 30, "speed": 10}) for mode in ("RGB", "RGBA")],
    ("ICO", "RGBA", {}),
    ("PPM", "RGB", {}),
    ("TGA", "RGB", {}),
)
MULTIPAGE = ("TIFF", "WEBP", "GIF", "PNG", "AVIF")
DAMAGES = {"JPEG": damage_jpeg, "PNG": damage_png, "WEBP": damage_webp, "BMP": damage_bmp, "TIFF": damage_tiff}
SEQUENCE_OF_GOOD = 1_000


def hostile_pictures(rng: random.Random, sizes: Sizes) -> Case:
    """Several files on one stream, or one for a detection; at the end of a stream a good one and a click's seed."""
    if rng.random() < 0.1:
        request = pb.DetectRequest(model="nanodet", image=pb.Image(encoded=make_file(rng, sizes)))
        return Case("pictures", DETECT, (Send(request.SerializeToString()),))
    steps: list[Send | Await] = []
    for number in range(rng.randint(2, 6)):
        image = pb.Image(encoded=make_file(rng, sizes), value_range=_range(rng))
        request = pb.InteractRequest(sequence=number, image=image)
        steps += [Send(request.SerializeToString()), Await(number + 1)]
    good = pb.InteractRequest(
        sequence=SEQUENCE_OF_GOOD,
        image=pb.Image(raw=pb.RawImage(data=bytes(12), width=2, height=2, format=pb.PIXEL_FORMAT_RGB8)),
    )
    return Case("pictures", INTERACT, (*steps, Send(good.SerializeToString())))


def _range(rng: random.Random) -> pb.ValueRange | None:
    """A range of values, sound or not, of one file in twenty."""
    if rng.random() > 0.05:
        return None
    low, high = rng.choices((0, 1, -1, 255, 1023, 65_535, 1e-310, -1e308, 1e308, math.inf, -math.inf, math.nan), k=2)
    return pb.ValueRange(low=low, high=high)


def make_file(rng: random.Random, sizes: Sizes) -> bytes:
    """An image file, damaged in nine of ten cases."""
    if rng.random() < 0.15:
        return promise(rng, sizes)
    kind, mode, options = rng.choice(KINDS)
    data = _saved(rng, kind, mode, options)
    damage = DAMAGES.get(kind)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3))):
        data = damage(data, rng, sizes) if damage is not None and rng.random() < 0.7 else _damage_blindly(data, rng)
    if rng.random() < 0.05:  # a second file behind the first
        other = rng.choice(KINDS)
        data += _saved(rng, *other)
    return data


def _saved(rng: random.Random, kind: str, mode: str, options: dict[str, Any]) -> bytes:
    image = _content(rng, mode, _size(rng))
    extra: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.3:
        extra["exif"] = make_exif(rng)
    if kind in MULTIPAGE and not options and rng.random() < 0.2:
        extra |= {
            "save_all": True,
            "append_images": [_content(rng, mode, image.size) for _ in range(rng.randint(1, 3))],
        }
    buffer = io.BytesIO()
    image.save(buffer, kind, **options, **extra)
    return buffer.getvalue()


def _size(rng: random.Random) -> tuple[int, int]:
    """Width and height: blocks of 8 x 8 and 16 x 16 pixels that are just full, just not, or neither."""
    width, height = (rng.choice((1, 2, 7, 8, 9, 16, 17, rng.randint(1, LARGEST_SIDE))) for _ in range(2))
    return width, height


def _content(rng: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    if rng.random() < 0.5:
        image = Image.frombytes("RGB", (width, height), rng.randbytes(width * height * 3))
    else:
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), rng.randbytes(width * height * 3))
    if mode in ("I;16", "LA"):
        return image.convert("L").convert(mode)
    return image.convert(mode)


def _damage_blindly(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, insert, repeat, or overwrite a run of bytes, anywhere."""
    if not data:  # it was cut away before
        return rng.randbytes(4)
    place, other = sorted(rng.randrange(len(data)) for _ in range(2))
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return rng.choice(
        (
            bytes(changed),
            data[:other],
            data[:place] + rng.randbytes(rng.randint(1, 40)) + data[place:],
            data[:place] + data[place:other] * rng.randint(2, 5) + data[other:],
            data[:place] + bytes([rng.choice((0, 255))]) * (other - place) + data[other:],
            data[:place] + data[other:],
        )
    )
