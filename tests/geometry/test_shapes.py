"""Polygons worth keeping: they give the mask back, never cross themselves, and obey the output options."""

import cv2
import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from polywand_server.geometry.overlap import intersection_over_union
from polywand_server.geometry.rings import count_vertices, rings
from polywand_server.geometry.shapes import Form, OutputOptions, Shape, make_shape
from polywand_server.images.regions import ProbabilityMap, Region

NOWHERE = np.zeros((0, 2))
EXACT = OutputOptions(tolerance=0, forms=(Form.POLYGONS, Form.RLE))


def field(seed: int, size: tuple[int, int] = (96, 128), blur: float = 4.0) -> np.ndarray:
    """A smooth random field with parts and holes, about half of it above 0.5."""
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), blur)
    return (1 / (1 + np.exp(-smooth / smooth.std() * 2))).astype(np.float32)


def decoded(shape: Shape, width: int, height: int) -> np.ndarray:
    return coco.decode({"size": [height, width], "counts": shape.rle}).astype(bool)


@pytest.mark.parametrize("seed", range(5))
def test_at_the_networks_own_scale_the_mask_is_the_thresholded_map(seed):
    values = field(seed)
    shape = make_shape(ProbabilityMap(Region(0, 0, 128, 96, (96, 128)), values), 0.5, EXACT, 128, 96, NOWHERE)
    difference = decoded(shape, 128, 96) ^ (values > 0.5)
    # Only specks may differ: they are dropped or filled whole.
    largest = max(part.area for part in shape.polygons.geoms)
    count, _, statistics, _ = cv2.connectedComponentsWithStats(difference.astype(np.uint8), connectivity=4)
    assert all(statistics[label, cv2.CC_STAT_AREA] <= max(3, 0.01 * largest) for label in range(1, count))


@given(
    seed=st.integers(0, 10_000),
    left=st.integers(-80, 40),
    top=st.integers(-60, 40),
    width=st.integers(60, 900),
    height=st.integers(60, 700),
    threshold=st.floats(0.2, 0.8),
)
@example(seed=0, left=0, top=0, width=60, height=582, threshold=0.7265625)  # a thin part turned round when simplified
@settings(max_examples=60, deadline=None)
def test_outlines_are_valid_lie_inside_the_image_and_hold_their_area(seed, left, top, width, height, threshold):
    probabilities = ProbabilityMap(Region(left, top, width, height, (96, 128)), field(seed))
    for options in (EXACT, OutputOptions(), OutputOptions(tolerance=3, max_points=30)):
        shape = make_shape(probabilities, threshold, options, 400, 300, NOWHERE)
        assert shape.polygons.is_valid
        if shape.polygons.is_empty:
            continue
        x0, y0, x1, y1 = shape.polygons.bounds
        assert 0 <= x0 < x1 <= 400
        assert 0 <= y0 < y1 <= 300
        assert all(part.exterior.is_ccw for part in shape.polygons.geoms)
        assert not any(hole.is_ccw for part in shape.polygons.geoms for hole in part.interiors)
        if options is EXACT:
            assert decoded(shape, 400, 300).sum() == pytest.approx(shape.area, abs=1 + 0.6 * shape.polygons.length)


@given(seed=st.integers(0, 10_000), limit=st.integers(3, 200))
@settings(max_examples=60, deadline=None)
def test_a_limit_of_vertices_holds_and_something_is_left(seed, limit):
    probabilities = ProbabilityMap(Region(0, 0, 1280, 960, (96, 128)), field(seed))
    shape = make_shape(probabilities, 0.5, OutputOptions(max_points=limit), 1280, 960, NOWHERE)
    assert 3 <= count_vertices(shape.polygons) <= limit
    assert shape.polygons.is_valid


def test_simplified_outlines_stay_within_the_tolerance():
    probabilities = ProbabilityMap(Region(0, 0, 1280, 960, (96, 128)), field(1))
    exact = make_shape(probabilities, 0.5, EXACT, 1280, 960, NOWHERE).polygons
    for tolerance in (1.0, 4.0, 16.0):
        simple = make_shape(probabilities, 0.5, OutputOptions(tolerance=tolerance), 1280, 960, NOWHERE)
        assert simple.tolerance == tolerance
        assert simple.polygons.boundary.hausdorff_distance(exact.boundary) <= tolerance + 1e-3


def test_an_object_that_fills_the_image_has_the_images_outline():
    probabilities = ProbabilityMap(Region(0, 0, 640, 480, (96, 128)), np.ones((96, 128), np.float32))
    shape = make_shape(probabilities, 0.5, EXACT, 640, 480, NOWHERE)
    assert shape.polygons.bounds == (0, 0, 640, 480)
    assert shape.area == 640 * 480
    assert decoded(shape, 640, 480).all()


def test_nothing_above_the_threshold_is_an_empty_shape():
    probabilities = ProbabilityMap(Region(0, 0, 640, 480, (96, 128)), np.zeros((96, 128), np.float32))
    shape = make_shape(probabilities, 0.5, EXACT, 640, 480, NOWHERE)
    assert shape.polygons.is_empty
    assert shape.area == 0
    assert not decoded(shape, 640, 480).any()


def test_specks_go_unless_a_click_lies_in_them():
    values = np.zeros((96, 128), np.float32)
    values[20:80, 20:100] = 1
    values[40:42, 50:52] = 0  # a hole of a few pixels
    values[5:7, 5:7] = 1  # a speck
    probabilities = ProbabilityMap(Region(0, 0, 128, 96, (96, 128)), values)
    clean = make_shape(probabilities, 0.5, EXACT, 128, 96, NOWHERE).polygons
    assert len(rings(clean)) == 1
    kept = make_shape(probabilities, 0.5, EXACT, 128, 96, np.array([[6.0, 6.0], [51.0, 41.0]])).polygons
    assert len(rings(kept)) == 3


@given(seed=st.integers(0, 10_000), tolerance=st.floats(0.5, 30), limit=st.integers(3, 300))
@settings(max_examples=60, deadline=None)
def test_the_iou_is_that_of_the_areas(seed, tolerance, limit):
    probabilities = ProbabilityMap(Region(0, 0, 1280, 960, (96, 128)), field(seed))
    exact = make_shape(probabilities, 0.5, EXACT, 1280, 960, NOWHERE)
    shape = make_shape(probabilities, 0.5, OutputOptions(tolerance=tolerance, max_points=limit), 1280, 960, NOWHERE)
    union = shape.polygons.union(exact.polygons).area
    assert exact.iou == 1
    # Two areas, each right to about a thousandth.
    assert shape.iou == pytest.approx(shape.polygons.intersection(exact.polygons).area / union, abs=4e-3)


@given(seed=st.integers(0, 10_000), options=st.sampled_from([EXACT, OutputOptions(), OutputOptions(tolerance=2)]))
@settings(max_examples=80, deadline=None)
def test_outlines_are_valid_where_probabilities_are_exactly_the_threshold(seed, options):
    """As those of a reduced mask are, or of a logit of 0."""
    mask = (field(seed, (64, 64), blur=1.5) > 0.5).astype(np.float32)
    values = cv2.resize(mask, (32, 32), interpolation=cv2.INTER_AREA)
    shape = make_shape(ProbabilityMap(Region(0, 0, 640, 640, (32, 32)), values), 0.5, options, 640, 640, NOWHERE)
    assert shape.polygons.is_valid


def test_the_largest_part_stays_however_few_vertices_are_allowed():
    values = np.zeros((96, 128), np.float32)
    values[10:80, 10:90] = 1
    values[20:70, 20:80] = 0  # a frame, whose outline its hole keeps from becoming a triangle
    values[85:93, 110:122] = 1
    probabilities = ProbabilityMap(Region(0, 0, 128, 96, (96, 128)), values)
    for limit in (3, 4, 5):
        shape = make_shape(probabilities, 0.5, OutputOptions(max_points=limit), 128, 96, NOWHERE)
        x0, _, x1, _ = shape.polygons.bounds
        assert x0 < 40 < x1


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_iou_of_a_wire_is_that_of_its_area(width):
    wire = shapely.MultiPolygon([shapely.box(0, 0, 4000, width)])
    moved = shapely.affinity.translate(wire, 0, width / 4)
    assert intersection_over_union(wire, moved) == pytest.approx(0.6, abs=0.01)
    assert intersection_over_union(wire, shapely.affinity.translate(wire, 0, 2 * width)) == 0
