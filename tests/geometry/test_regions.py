"""Regions map to a network's input and back exactly, and crops show what the region says."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywand_pictures import PixelFormat, RawPixels
from polywand_server.images import RawImage, decode_image
from polywand_server.images.regions import LARGEST_MAP, ProbabilityMap, Region, crop_into, from_network, snap
from polywand_server.images.resampling import Resampling

REGIONS = st.builds(
    Region,
    left=st.integers(-500, 5000),
    top=st.integers(-500, 5000),
    width=st.integers(1, 8000),
    height=st.integers(1, 8000),
    size=st.tuples(st.integers(16, 800), st.integers(16, 800)),
)
COORDINATES = st.floats(-1000, 10000, allow_nan=False)


def picture(pixels: np.ndarray):
    height, width = pixels.shape[:2]
    raw = RawPixels(pixels.tobytes(), width, height, PixelFormat.RGB8)
    return decode_image(RawImage(raw, "image"), 10**9, 10**9)


def crop(image, region: Region) -> np.ndarray:
    target = np.full((*region.size, 3), 77, np.uint8)  # whatever was there before
    crop_into(target, image, region)
    return target


@given(REGIONS, COORDINATES, COORDINATES)
def test_there_and_back_is_the_same_point(region, x, y):
    point = np.array([[x, y]])
    np.testing.assert_allclose(region.from_input(region.to_input(point)), point, atol=1e-6)


@given(REGIONS)
def test_the_edges_of_the_region_are_the_edges_of_the_input(region):
    corners = np.array([[region.left, region.top], [region.left + region.width, region.top + region.height]])
    expected = np.array([[-0.5, -0.5], [region.size[1] - 0.5, region.size[0] - 0.5]])
    np.testing.assert_allclose(region.to_input(corners.astype(float)), expected, atol=1e-6)


@given(
    st.floats(-100, 3000, allow_subnormal=False),
    st.floats(-100, 3000, allow_subnormal=False),
    st.floats(2, 6000),
    st.floats(2, 6000),
    st.sampled_from([(384, 384), (320, 200)]),
)
def test_snapping_moves_an_edge_by_at_most_a_pixel_of_the_input_or_of_the_image(left, top, width, height, size):
    region = snap(left, top, left + width, top + height, size)
    allowed = max(1.0, min(width / size[1], height / size[0]))
    assert 0 <= left - region.left <= allowed
    assert 0 <= top - region.top <= allowed
    assert 0 <= region.left + region.width - (left + width) <= allowed + 1e-6
    assert 0 <= region.top + region.height - (top + height) <= allowed + 1e-6


@pytest.mark.parametrize("size", [(40, 60), (401, 603), (1600, 2400), (3001, 4507)])
def test_a_crop_shows_what_the_region_says(size):
    """The image's brightness is its x and y coordinate, so every pixel of a crop tells where it was taken."""
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    pixels = np.dstack([(columns + 0.5) / width, (rows + 0.5) / height, np.ones_like(rows)]) * 250
    image = picture(np.round(pixels).astype(np.uint8))
    for left, top, right, bottom in ((0, 0, width, height), (width * 0.2, height * 0.1, width * 0.9, height * 0.6)):
        region = snap(left, top, right, bottom, (96, 64))
        shown = crop(image, region).astype(np.float32) / 250
        positions = region.from_input(
            np.stack(np.meshgrid(np.arange(64), np.arange(96)), -1).reshape(-1, 2).astype(float)
        )
        inside = (
            (positions >= 2 * region.pixel_size) & (positions <= np.array([width, height]) - 2 * region.pixel_size)
        ).all(1)
        error = np.abs(shown.reshape(-1, 3)[:, :2] * (width, height) - positions)[inside]
        rounding = np.array([width, height]) / 250
        assert (error <= rounding + 0.6 * region.pixel_size).all()
        assert np.abs(error.mean(axis=0)).max() <= rounding.max()


def test_a_crop_is_black_outside_the_image():
    image = picture(np.full((100, 100, 3), 200, np.uint8))
    shown = crop(image, Region(-50, -50, 200, 200, (100, 100)))
    assert (shown[:25] == 0).all()
    assert (shown[:, :25] == 0).all()
    assert (shown[75:] == 0).all()
    assert (shown[26:74, 26:74] == 200).all()
    assert not crop(image, Region(500, 500, 50, 50, (20, 20))).any()


def test_a_strip_that_shrinks_along_one_axis_only_is_averaged_along_it():
    """Every second column is white: whatever were picked instead of averaged would be black or white."""
    pixels = np.zeros((300, 4000, 3), np.uint8)
    pixels[:, ::2] = 255
    shown = crop(picture(pixels), Region(0, 0, 4000, 300, (384, 384)))
    assert np.abs(shown.astype(int) - 127).max() <= 16


def test_reducing_in_steps_equals_reducing_at_once():
    generator = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(generator.integers(0, 255, (3072, 3072, 3), np.uint8), (0, 0), 3)
    at_once = cv2.resize(pixels, (384, 384), interpolation=cv2.INTER_AREA)
    in_steps = crop(picture(pixels), Region(0, 0, 3072, 3072, (384, 384)))
    assert np.abs(at_once.astype(int) - in_steps).max() <= 3


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.3, 3))
def test_a_map_brought_onto_another_region_keeps_its_place(left, top, zoom):
    """A blob's centre of mass stays where it was in the image."""
    source = Region(0, 0, 128, 128, (128, 128))
    rows, columns = np.mgrid[:128, :128]
    blob = np.exp(-((columns - 63.5) ** 2 + (rows - 60.5) ** 2) / 50).astype(np.float32)
    side = max(100, round(128 / zoom))
    target = Region(left - 40, top - 40, side + 60, side + 60, (160, 160))
    moved = ProbabilityMap(source, blob).resampled(target)
    if moved[0].max() > 1e-3 or moved[-1].max() > 1e-3 or moved[:, 0].max() > 1e-3 or moved[:, -1].max() > 1e-3:
        return  # the blob is cut
    rows, columns = np.mgrid[:160, :160]
    centre = np.array([[(columns * moved).sum(), (rows * moved).sum()]]) / moved.sum()
    np.testing.assert_allclose(target.from_input(centre), [[64, 61]], atol=0.05)


# The conventions of published predictors.

AS_PUBLISHED = (Resampling.LINEAR, Resampling.CUBIC, Resampling.CORNERS)


@pytest.mark.parametrize("resampling", AS_PUBLISHED)
@given(st.integers(-50, 300), st.floats(0, 0.999))
def test_as_published_a_point_is_the_pixel_that_it_lies_in(resampling, x, fraction):
    region = Region(-20, -10, 160, 80, (512, 512), resampling)
    point = region.to_input(np.array([[x + fraction, x + fraction]]))
    np.testing.assert_allclose(point, [[(x + 20) * 512 / 160, (x + 10) * 512 / 80]], rtol=1e-6)


def test_as_published_a_place_just_below_a_whole_number_stays_below_it_in_single_precision():
    """DEXTR's code cuts positions down to whole numbers; these fall short of one by the last digit of a double."""
    for width in range(100, 600):
        region = Region(0, 0, width, width, (512, 512), Resampling.CUBIC)
        pixels = np.arange(width, dtype=float)
        positions = region.to_input(np.stack([pixels, pixels], 1)).astype(np.float32)
        np.testing.assert_array_equal(positions[:, 0].astype(int), (512 * pixels * (1 / width)).astype(int))


@pytest.mark.parametrize(
    ("resampling", "interpolation"), [(Resampling.LINEAR, cv2.INTER_LINEAR), (Resampling.CUBIC, cv2.INTER_CUBIC)]
)
def test_a_crop_as_published_is_resized_at_once_from_the_images_own_pixels(resampling, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (1300, 1700, 3), np.uint8)
    shown = crop(picture(pixels), Region(-64, 100, 1600, 1100, (100, 150), resampling))
    padded = np.pad(pixels[100:1200, :1536], ((0, 0), (64, 0), (0, 0)))
    np.testing.assert_array_equal(shown, cv2.resize(padded, (150, 100), interpolation=interpolation))


@pytest.mark.parametrize("size", [(40, 61), (480, 640), (33, 1)])
def test_resampling_by_corners_puts_the_first_and_last_pixels_on_each_other(size):
    """A brightness that rises evenly still does, between the very same values."""
    rows, columns = np.mgrid[:120, :160]
    pixels = np.dstack([columns + 50, rows + 70, rows]).astype(np.uint8)
    shown = crop(picture(pixels), Region(10, 5, 121, 101, size, Resampling.CORNERS)).astype(int)
    expected = np.round(np.linspace(60, 180, size[1])) if size[1] > 1 else np.array([60])
    assert np.abs(shown[..., 0] - expected).max() <= 1
    assert np.abs(shown[..., 1] - np.round(np.linspace(75, 175, size[0]))[:, None]).max() <= 1
    assert shown[0, 0].tolist() == [60, 75, 5]
    assert shown[-1, -1].tolist() == [expected[-1], 175, 105]


@given(st.sampled_from(AS_PUBLISHED), st.integers(20, 400), st.integers(20, 400))
def test_an_answer_comes_back_to_the_images_pixels_as_published(resampling, width, height):
    """By OpenCV's cubic interpolation, or linearly between corners, where a plane stays a plane."""
    rows, columns = np.mgrid[:96, :128].astype(np.float32)
    values = np.sin(columns / 9) * np.cos(rows / 7) / 2 + 0.5
    if resampling is Resampling.CORNERS:
        values = columns / 127 * 0.6 + rows / 95 * 0.4
    found = from_network(values, Region(7, -3, width, height, (96, 128), resampling))
    assert found.region == Region(7, -3, width, height, (height, width))
    if resampling is Resampling.CORNERS:
        expected = np.linspace(0, 0.6, width) + np.linspace(0, 0.4, height)[:, None]
    else:
        expected = cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(found.values, expected, atol=2e-5)


def test_an_answer_is_not_kept_in_a_margin_that_is_cut():
    values = np.random.default_rng(0).random((64, 64), np.float32)
    seen = Region(10, 20, 100, 90, (64, 64), Resampling.CUBIC, margin=15)
    found = from_network(values, seen)
    assert found.region == Region(25, 35, 70, 60, (60, 70))
    everything = cv2.resize(values, (100, 90), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(found.values, everything[15:-15, 15:-15], atol=1e-5)


@pytest.mark.parametrize("resampling", AS_PUBLISHED)
def test_an_answer_on_a_large_crop_takes_no_more_than_its_share(resampling):
    rows, columns = np.mgrid[:300, :400].astype(np.float32)
    values = np.exp(-((columns - 250) ** 2 + (rows - 120) ** 2) / 5000)
    seen = Region(0, 0, 8000, 6000, (300, 400), resampling)
    found = from_network(values, seen)
    assert found.values.size <= 1.01 * LARGEST_MAP
    y, x = np.unravel_index(found.values.argmax(), found.values.shape)
    position = found.region.from_input(np.array([[x, y]], float))
    np.testing.assert_allclose(position, seen.from_input(np.array([[250.0, 120.0]])), atol=found.region.pixel_size)


def test_a_map_fed_back_as_published_is_cut_out_of_the_image_and_resized_by_corners():
    random = np.random.default_rng(0)
    known = ProbabilityMap(Region(30, 40, 50, 60, (60, 50)), random.random((60, 50), np.float32))
    image = np.zeros((200, 200), np.float32)
    image[40:100, 30:80] = known.values
    fed = known.resampled(Region(20, 60, 51, 81, (161, 101), Resampling.CORNERS))
    np.testing.assert_allclose(fed[::2, ::2], image[60:141, 20:71], atol=1e-6)
    between = (image[60:140, 20:71] + image[61:141, 20:71]) / 2
    np.testing.assert_allclose(fed[1::2, ::2], between, atol=1e-6)
