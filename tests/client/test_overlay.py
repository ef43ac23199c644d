"""Overlays: the picture under them is the server's, and what is drawn is where the answer says."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

import polywand
from polywand import overlay

ORIENTATION = 0x0112


def with_pillow(data: bytes) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_by_their_exif(astronaut: NDArray[np.uint8], file_format: str, orientation: int) -> None:
    image = Image.fromarray(astronaut[:300, :200])
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, file_format, exif=exif)
    expected, loaded = with_pillow(file.getvalue()), overlay.load_rgb(file.getvalue())
    assert loaded.shape == expected.shape
    assert np.abs(loaded.astype(int) - expected).mean() < 3


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        *(("PNG", mode) for mode in ("RGBA", "LA", "L", "P", "1", "I;16")),
        *(("TIFF", mode) for mode in ("L", "P", "1", "I;16")),
    ],
)
def test_pictures_of_all_modes_become_rgb_on_white(astronaut: NDArray[np.uint8], file_format: str, mode: str) -> None:
    opacity = np.tile(np.linspace(0, 255, 512), (512, 1)).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([astronaut, opacity]))
    grey = np.asarray(rgba.convert("L"))
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else rgba.convert(mode)
    file = io.BytesIO()
    image.save(file, file_format)
    expected = np.dstack([grey] * 3) if mode == "I;16" else with_pillow(file.getvalue())
    assert np.abs(overlay.load_rgb(file.getvalue()).astype(int) - expected).mean() < 0.5


def test_the_picture_under_a_drawing_has_the_range_that_was_said() -> None:
    file = cv2.imencode(".png", np.full((8, 8), 500, np.uint16))[1].tobytes()
    assert overlay.load_rgb(file, (0, 1000))[0, 0].tolist() == [128, 128, 128]
    with pytest.raises(polywand.InvalidRequest, match="below"):
        overlay.load_rgb(file, (5, 5))


@pytest.mark.parametrize("data", [b"", b"not an image", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPEXIF"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(polywand.InvalidRequest, match="cannot be drawn on: "):
        overlay.load_rgb(data)


def square(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float32]:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32)


@pytest.mark.parametrize("scale", [1, 8])
def test_insides_are_tinted_holes_are_not_and_lines_grow_with_the_picture(scale: int) -> None:
    black = np.zeros((200 * scale, 300 * scale, 3), np.uint8)
    shape = polywand.Polygon(square(50, 50, 250, 150) * scale, (square(100, 80, 200, 120)[::-1] * scale,))
    picture = overlay.draw_segmentation(black, [shape])
    assert not black.any()
    tint = np.rint(np.array(overlay.OUTLINE) * overlay.FILL_OPACITY).tolist()
    assert picture[65 * scale, 75 * scale].tolist() == tint
    assert not picture[100 * scale, 150 * scale].any()
    assert not picture[20 * scale, 20 * scale].any()
    across = picture[100 * scale, 30 * scale : 70 * scale].tolist()
    line = sum(pixel not in ([0, 0, 0], tint) for pixel in across)
    assert 2 <= line <= 5 if scale == 1 else 12 <= line <= 18


def test_lines_run_through_the_corners_of_pixels_as_the_contract_has_it() -> None:
    black = np.zeros((40, 40, 3), np.uint8)
    picture = overlay.draw_segmentation(black, [], box=polywand.Box(10.5, 10.5, 30.5, 30.5))
    assert picture[10, 20].min() > 200  # a line through the centres of pixels is theirs alone
    assert picture[11, 20].max() < 60
    between = overlay.draw_segmentation(black, [], box=polywand.Box(10, 10, 30, 30))
    assert between[9, 20, 0] == pytest.approx(between[10, 20, 0], abs=40)  # one along a border lies on both sides
    assert between[9, 20].min() > 60


def test_labels_are_readable_and_inside_even_of_boxes_at_the_border() -> None:
    grey = np.full((120, 200, 3), 128, np.uint8)
    found = polywand.Detection("Übung", "x", 0.5, polywand.Box(180, 0, 200, 119))
    picture = overlay.draw_detections(grey, [found])
    changed = np.argwhere((picture != grey).any(axis=2))
    assert changed[:, 1].min() < 170
    patch = picture[:12, 120:]
    contrast = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    assert int(contrast.max()) - int(contrast.min()) > 100
