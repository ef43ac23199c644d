"""Every format that the contract names arrives as the same picture, upright."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from google.rpc import error_details_pb2
from PIL import Image

from polywand_contract.v1 import annotation_pb2 as pb
from tests.pictures.writers import png, tiff
from tests.streams import InteractStream


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opencv_file(extension: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(extension, pixels)[1].tobytes()


def wide(rgb: np.ndarray) -> np.ndarray:
    """The same picture in 16 bits, as OpenCV writes it."""
    return rgb[..., ::-1].astype(np.uint16) * 257


FORMATS: dict[str, Callable[[np.ndarray, Image.Image], bytes]] = {
    "JPEG": lambda _, image: file_of(image, "JPEG", quality=95),
    "progressive JPEG": lambda _, image: file_of(image, "JPEG", quality=95, progressive=True),
    "CMYK JPEG": lambda _, image: file_of(image.convert("CMYK"), "JPEG", quality=95),
    "JPEG with bytes after its end": lambda _, image: file_of(image, "JPEG", quality=95) + b"trailer",
    "PNG": lambda _, image: file_of(image, "PNG"),
    "palette PNG": lambda _, image: file_of(image.quantize(256), "PNG"),
    "RGBA PNG": lambda _, image: file_of(image.convert("RGBA"), "PNG"),
    "16-bit PNG": lambda rgb, _: opencv_file(".png", wide(rgb)),
    "WebP": lambda _, image: file_of(image, "WEBP", quality=95),
    "BMP": lambda _, image: file_of(image, "BMP"),
    "TIFF": lambda _, image: file_of(image, "TIFF", compression="tiff_lzw"),
    "16-bit TIFF": lambda rgb, _: opencv_file(".tiff", wide(rgb)),
    "float TIFF": lambda rgb, _: tiff(rgb.astype(np.float32) / 255, 2, planar=True, packing=8),
    "GIF": lambda _, image: file_of(image, "GIF"),
    "AVIF": lambda _, image: file_of(image, "AVIF", quality=90, speed=10),
}
QUICK = {"AVIF": {"speed": 10}, "WEBP": {"method": 0}, "PNG": {"compress_level": 1}}


def detect(stub, data: bytes, said: pb.ValueRange | None = None) -> pb.DetectResponse:
    return stub.Detect(pb.DetectRequest(model="nanodet", image=pb.Image(encoded=data, value_range=said)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_in_colour(stub, astronaut, name):
    response = detect(stub, FORMATS[name](astronaut, Image.fromarray(astronaut)))
    assert (response.image.width, response.image.height) == (512, 512)
    assert response.detections[0].label == "person"
    assert response.detections[0].score == pytest.approx(0.73, abs=0.06)


@pytest.mark.parametrize("name", ["grey JPEG", "grey PNG", "16-bit grey PNG", "16-bit grey TIFF", "1-bit PNG"])
def test_grey_is_read_as_grey(stub, astronaut, name):
    grey = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)
    image = Image.fromarray(grey)
    data = {
        "grey JPEG": file_of(image, "JPEG", quality=95),
        "grey PNG": file_of(image, "PNG"),
        "16-bit grey PNG": opencv_file(".png", grey.astype(np.uint16) * 257),
        "16-bit grey TIFF": opencv_file(".tiff", grey.astype(np.uint16) * 257),
        "1-bit PNG": file_of(image.convert("1"), "PNG"),
    }[name]
    response = detect(stub, data)
    assert (response.image.width, response.image.height) == (512, 512)
    if name != "1-bit PNG":
        assert response.detections[0].label == "person"


@pytest.fixture(scope="module")
def upright(stub, coffee) -> pb.Detection:
    """What is found on the photo as it is."""
    return detect(stub, opencv_file(".bmp", coffee[..., ::-1])).detections[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(stub, coffee, upright, kind, orientation):
    """A file that a camera wrote turned, and the tag that says so, is the upright photo again."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(coffee)
    turned = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    response = detect(stub, file_of(turned, kind, exif=exif, **QUICK.get(kind, {})))
    assert (response.image.width, response.image.height) == (600, 400)
    best = response.detections[0]
    assert best.label == upright.label == "dining table"
    assert best.box.y1 == pytest.approx(upright.box.y1, abs=6)
    assert best.box.x0 == pytest.approx(upright.box.x0, abs=6)


def test_transparency_is_laid_on_white(stub, astronaut):
    rgba = np.dstack([astronaut, np.zeros((512, 512), np.uint8)])
    assert not detect(stub, file_of(Image.fromarray(rgba, "RGBA"), "PNG")).detections


def test_the_smallest_image_is_an_image(stub):
    with InteractStream(stub) as stream:
        info = stream.ask(pb.Image(raw=pb.RawImage(data=b"abc", width=1, height=1, format=pb.PIXEL_FORMAT_RGB8))).image
        assert (info.width, info.height) == (1, 1)
        reply = stream.ask(pb.Prompt(model="wand_click", points=[pb.Point(x=0.5, y=0.5, label=1)]))
        assert reply.WhichOneof("result") == "segmentation"


def test_a_range_of_values_counts(stub, astronaut):
    """Values that begin at 20,000 and leave most of 16 bits unused are a person with a range, and mist without."""
    data = png(astronaut.astype(np.uint16) * 16 + 20_000)
    found = detect(stub, data, pb.ValueRange(low=20_000, high=20_000 + 16 * 255))
    assert found.detections[0].label == "person"
    assert found.detections[0].score == pytest.approx(0.73, abs=0.06)
    with InteractStream(stub) as stream:
        said = pb.ValueRange(low=20_000, high=24_080)
        assert stream.ask(pb.Image(encoded=data, value_range=said)).image.width == 512


GREY16 = png(np.full((8, 8), 1000, np.uint16))
EIGHT_BITS = png(np.full((8, 8), 100, np.uint8))
JPEG = opencv_file(".jpg", np.full((8, 8, 3), 100, np.uint8))
RAW = pb.RawImage(data=bytes(12), width=2, height=2, format=pb.PIXEL_FORMAT_RGB8)


@pytest.mark.parametrize(
    ("image", "said", "word"),
    [
        ({"encoded": GREY16}, (5, 5), "below"),
        ({"encoded": GREY16}, (float("nan"), 5), "finite"),
        ({"encoded": GREY16}, (0, float("inf")), "finite"),
        ({"encoded": GREY16}, (0, 0), "below"),
        ({"encoded": EIGHT_BITS}, (0, 100), "8 bits"),
        ({"encoded": JPEG}, (0, 100), "8 bits"),
        ({"raw": RAW}, (0, 100), "8 bits"),
    ],
)
def test_a_range_that_cannot_be_used_is_an_error_of_its_field(stub, image, said, word):
    with InteractStream(stub) as stream:
        reply = stream.ask(pb.Image(**image, value_range=pb.ValueRange(low=said[0], high=said[1])))
        violation = error_details_pb2.BadRequest()
        assert any(detail.Unpack(violation) for detail in reply.error.details)
        assert violation.field_violations[0].field == "image.value_range"
        assert word in violation.field_violations[0].description
        assert stream.ask(pb.Image(encoded=GREY16)).image.width == 8


def test_half_a_jpeg_with_an_end_is_refused_and_bytes_behind_a_whole_one_are_not(stub, astronaut):
    whole = file_of(Image.fromarray(astronaut), "JPEG", quality=95)
    with InteractStream(stub) as stream:
        assert "damaged" in stream.ask(pb.Image(encoded=whole[: len(whole) // 2] + b"\xff\xd9")).error.message
        assert stream.ask(pb.Image(encoded=whole + b"\xff\xda" * 2000)).image.width == 512
