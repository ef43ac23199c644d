"""Callers' images as messages, and the digests of those that the server is known to hold."""

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

import polywand
from polywand.images import KnownImages, digest, to_message
from polywand_contract.v1 import annotation_pb2 as pb

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (3, 4, 3), np.uint8)
RGBA = RNG.integers(0, 256, (3, 4, 4), np.uint8)
GREY = RNG.integers(0, 256, (3, 4), np.uint8)
GREY16 = RNG.integers(0, 65536, (3, 4), np.uint16)


@pytest.mark.parametrize(
    ("image", "name", "data"),
    [
        (RGB, "RGB8", RGB.tobytes()),
        (np.asfortranarray(RGB), "RGB8", RGB.tobytes()),
        (RGB[:, ::-1][:, ::-1], "RGB8", RGB.tobytes()),
        (RGBA, "RGBA8", RGBA.tobytes()),
        (GREY, "GRAY8", GREY.tobytes()),
        (GREY16, "GRAY16", GREY16.astype("<u2").tobytes()),
        (GREY16.astype(">u2"), "GRAY16", GREY16.astype("<u2").tobytes()),
        (polywand.Pixels(RGB, "BGR8"), "BGR8", RGB.tobytes()),
        (polywand.Pixels(GREY16, "GRAY16"), "GRAY16", GREY16.astype("<u2").tobytes()),
        (PIL.Image.fromarray(RGB), "RGB8", RGB.tobytes()),
        (PIL.Image.fromarray(RGBA), "RGBA8", RGBA.tobytes()),
        (PIL.Image.fromarray(GREY), "GRAY8", GREY.tobytes()),
        (PIL.Image.fromarray(GREY16), "GRAY16", GREY16.astype("<u2").tobytes()),
        (PIL.Image.fromarray(RGB).convert("CMYK"), "RGB8", None),
        (PIL.Image.fromarray(GREY).convert("LA"), "RGBA8", None),
        (PIL.Image.fromarray(RGB).quantize(8), "RGB8", None),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_pixels_are_sent_as_they_are(image: Any, name: str, data: bytes | None) -> None:
    raw = to_message(image).raw
    assert pb.PixelFormat.Name(raw.format) == f"PIXEL_FORMAT_{name}"
    assert (raw.width, raw.height) == (4, 3)
    assert data is None or raw.data == data


def test_a_transparent_palette_stays_transparent() -> None:
    image = PIL.Image.fromarray(GREY).convert("P")
    image.info["transparency"] = 0
    assert to_message(image).raw.format == pb.PIXEL_FORMAT_RGBA8


def test_pillow_is_not_imported_for_it() -> None:
    program = (
        "import sys, numpy, polywand.images as images; images.to_message(numpy.zeros((3, 4), 'u1'));"
        "\ntry: images.to_message(object())\nexcept ValueError: pass\nprint('PIL' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((3, 4, 3)), r"not float64 \[3, 4, 3\]"),
        (np.zeros((3, 4, 2), np.uint8), r"not uint8 \[3, 4, 2\]"),
        (np.zeros((3, 4, 3), np.uint16), r"not uint16 \[3, 4, 3\]"),
        (np.zeros((3, 4), bool), "not bool"),
        (np.zeros((0, 4, 3), np.uint8), r"not uint8 \[0, 4, 3\]"),
        (np.zeros(4, np.uint8), r"not uint8 \[4\]"),
        (polywand.Pixels(GREY, "BGR8"), r"BGR8 are uint8 \[H, W, 3\], not uint8 \[3, 4\]"),
        (polywand.Pixels([[0]], "GRAY8"), "not list"),  # type: ignore[arg-type]
        (polywand.Pixels(RGB, "HSV8"), "one of RGB8, BGR8, GRAY8, RGBA8, GRAY16"),  # type: ignore[arg-type]
        (3.5, "not float"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_image_is_told(image: Any, complaint: str) -> None:
    with pytest.raises(polywand.InvalidRequest, match=complaint):
        to_message(image)


def test_digests_are_those_of_the_contract() -> None:
    assert digest(to_message(b"photo")) == hashlib.sha256(b"photo").digest()
    assert digest(to_message(RGB)) == hashlib.sha256(b"RGB8 4 3\n" + RGB.tobytes()).digest()
    assert digest(to_message(GREY16)) == hashlib.sha256(b"GRAY16 4 3\n" + GREY16.astype("<u2").tobytes()).digest()


def accepted(
    known: KnownImages, image: NDArray[Any] | bytes, value_range: tuple[float, float] | None = None
) -> pb.Image:
    message = to_message(image, value_range)
    known.add(message, pb.ImageInfo(digest=digest(message)))
    return message


def test_an_image_is_known_after_the_server_accepted_it() -> None:
    known = KnownImages()
    assert known.by_digest(to_message(b"photo")) is None
    accepted(known, b"photo")
    by_digest = known.by_digest(to_message(b"photo"))
    assert by_digest == pb.Image(digest=hashlib.sha256(b"photo").digest())
    assert known.by_digest(to_message(b"other")) is None  # of the same size
    known.discard(by_digest)
    assert known.by_digest(to_message(b"photo")) is None


def test_an_image_is_known_with_its_range_of_values() -> None:
    known = KnownImages()
    accepted(known, GREY16, (0, 1023))
    by_digest = known.by_digest(to_message(GREY16, (0, 1023)))
    assert by_digest is not None
    assert by_digest.value_range == pb.ValueRange(low=0, high=1023)
    assert known.by_digest(to_message(GREY16)) is None
    assert known.by_digest(to_message(GREY16, (0, 255))) is None


def test_the_newest_images_are_known() -> None:
    known = KnownImages()
    photos = [number.to_bytes(4, "big") for number in range(1200)]
    for photo in photos:
        accepted(known, photo)
    found = [known.by_digest(to_message(photo)) is not None for photo in photos]
    assert found == [False] * (1200 - 1024) + [True] * 1024


def test_nothing_is_known_of_a_server_that_sends_no_digest() -> None:
    known = KnownImages()
    known.add(to_message(b"photo"), pb.ImageInfo(width=4, height=3))
    assert known.by_digest(to_message(b"photo")) is None
