"""PNG masks: the pixels of the run lengths, in a file that any reader reads."""

import io

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from polywand_contract.raster import decode_rle
from polywand_server.geometry.drawn import drawn
from polywand_server.geometry.png import to_png
from polywand_server.geometry.raster import to_rle
from polywand_server.geometry.shapes import Form, OutputOptions, shape_of


def parts(*polygons: shapely.Polygon) -> shapely.MultiPolygon:
    return shapely.MultiPolygon(polygons)


def star(x: float, y: float, radius: float) -> shapely.Polygon:
    angles = np.arange(10) * np.pi / 5
    radii = radius * np.where(np.arange(10) % 2, 0.4, 1)
    return shapely.Polygon(np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1))


SHAPES = {
    "nothing": parts(),
    "the whole image": parts(shapely.box(0, 0, 1000, 1000)),
    "a star": parts(star(30.3, 21.7, 15)),
    "between two bytes": parts(shapely.box(7, 3, 9, 5)),
    "one pixel": parts(shapely.box(15, 0, 16, 1)),
    "thinner than a pixel": parts(shapely.box(10.6, 2, 11.4, 9)),
    "a hole": parts(star(20, 20, 19).difference(star(20, 20, 6))),
    "two parts": parts(star(9, 9, 8), star(33, 30, 7.5)),
    "partly outside": parts(star(-2, 3, 14), star(41, 40, 9)),
    "outside": parts(shapely.box(-30, -40, -3, -8)),
}


def read(png: bytes) -> NDArray[np.bool_]:
    """The pixels of a PNG file, by two readers."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        pixels = np.asarray(image)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE), pixels * 255)
    return pixels


@pytest.mark.parametrize("size", [(41, 38), (40, 40), (1, 50), (50, 1), (8, 8)], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_png_has_the_pixels_of_the_run_lengths(name, size):
    pixels = read(to_png(SHAPES[name], *size))
    np.testing.assert_array_equal(pixels, decode_rle(to_rle(SHAPES[name], *size), *size))


def test_a_png_counts_in_the_size_of_an_outline():
    noise = np.random.default_rng(3).random((40, 40)) > 0.5
    squares = parts(*(shapely.box(2 * x, 2 * y, 2 * x + 1, 2 * y + 1) for y, x in np.argwhere(noise).tolist()))
    with_png, without = (
        drawn(shape_of(squares, OutputOptions(forms=forms), 80, 80, 0.5)) for forms in ((Form.PNG,), (Form.BOX,))
    )
    assert with_png.png
    assert with_png.nbytes == without.nbytes + len(with_png.png)
