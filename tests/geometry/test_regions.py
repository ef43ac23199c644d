"""Regions map to a network's input and back exactly, and crops show what the region says."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywand_server.images import RawImage, decode_image
from polywand_server.regions import ProbabilityMap, Region, crop_into, snap

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
    return decode_image(RawImage(pixels.tobytes(), width, height, "image"), 10**9, 10**9)


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
        places = region.from_input(np.stack(np.meshgrid(np.arange(64), np.arange(96)), -1).reshape(-1, 2).astype(float))
        inside = (
            (places >= 2 * region.pixel_size) & (places <= np.array([width, height]) - 2 * region.pixel_size)
        ).all(1)
        error = np.abs(shown.reshape(-1, 3)[:, :2] * (width, height) - places)[inside]
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
