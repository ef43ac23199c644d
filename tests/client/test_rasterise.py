"""Masks from polygons and from run lengths and back, against the rule spelled out in fractions and pycocotools."""

from fractions import Fraction

import hypothesis.extra.numpy
import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray

from polywand import Polygon, decode_rle, encode_rle, rasterise


def polygon(exterior: list[tuple[float, float]], *holes: list[tuple[float, float]]) -> Polygon:
    return Polygon(np.array(exterior, np.float32), tuple(np.array(hole, np.float32) for hole in holes))


def by_the_rule(polygons: list[Polygon], width: int, height: int) -> NDArray[np.bool_]:
    """The contract's RASTERISING section, one pixel and one edge at a time, in exact arithmetic."""
    rings = [ring for part in polygons for ring in (part.exterior, *part.holes)]
    edges = [
        tuple(Fraction(float(value)) for value in (*start, *end))
        for ring in rings
        for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True)
    ]
    mask = np.zeros((height, width), np.bool_)
    for column in range(width):
        x = column + Fraction(1, 2)
        # Half-open: an edge that ends at the centre's column is left of it, so on a vertical edge what is right wins.
        crossings = [y0 + (x - x0) * (y1 - y0) / (x1 - x0) for x0, y0, x1, y1 in edges if (x0 <= x) != (x1 <= x)]
        for row in range(height):
            # A crossing exactly at the centre is above it, so the centre belongs to what is below.
            mask[row, column] = sum(crossing <= row + Fraction(1, 2) for crossing in crossings) % 2
    return mask


def star(random: np.random.Generator, grid: float) -> list[tuple[float, float]]:
    angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 12)))
    radii = random.uniform(2, 14, len(angles))
    points = np.stack([10 + radii * np.cos(angles), 9 + radii * np.sin(angles)], axis=1)
    return [tuple(point) for point in (np.round(points / grid) * grid).tolist()]


@pytest.mark.parametrize("grid", [0.5, 0.25, 1 / 1024, 1e-6])
def test_random_shapes_follow_the_rule_exactly_even_where_centres_lie_on_edges(grid: float) -> None:
    random = np.random.default_rng(7)
    for _ in range(60):
        parts = [polygon(star(random, grid), star(random, grid)), polygon(star(random, grid))]
        np.testing.assert_array_equal(rasterise(parts, 21, 18), by_the_rule(parts, 21, 18))


def test_a_pixel_is_covered_by_the_square_around_it() -> None:
    mask = rasterise([polygon([(3, 1), (5, 1), (5, 2), (3, 2)])], 8, 4)
    assert np.argwhere(mask).tolist() == [[1, 3], [1, 4]]


def test_shapes_that_share_an_edge_share_no_pixel_and_leave_no_gap() -> None:
    left = polygon([(0, 0), (6.5, 0), (2.5, 9), (0, 9)])
    right = polygon([(6.5, 0), (12, 0), (12, 9), (2.5, 9)])
    one, other = rasterise([left], 12, 9), rasterise([right], 12, 9)
    assert not (one & other).any()
    assert (one | other).all()


def test_a_centre_on_an_edge_belongs_to_what_is_below_or_on_its_right() -> None:
    mask = rasterise([polygon([(1.5, 1.5), (3.5, 1.5), (3.5, 3.5), (1.5, 3.5)])], 5, 5)
    assert np.argwhere(mask).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_holes_are_cut_out_and_islands_in_them_filled() -> None:
    ring = polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [(2, 2), (2, 7), (7, 7), (7, 2)])
    island = polygon([(4, 4), (5, 4), (5, 5), (4, 5)])
    mask = rasterise([ring, island], 9, 9)
    assert mask.sum() == 81 - 25 + 1
    assert mask[4, 4]
    assert not mask[3, 3]


def test_what_reaches_outside_the_image_is_cut_off() -> None:
    mask = rasterise([polygon([(-1000, -50), (2.5, -50), (2.5, 700), (-1000, 700)])], 6, 4)
    assert mask[:, :2].all()
    assert not mask[:, 2:].any()


@pytest.mark.parametrize("polygons", [[], [polygon([])], [polygon([(1, 1), (3, 1)])]])
def test_nothing_covers_nothing(polygons: list[Polygon]) -> None:
    mask = rasterise(polygons, 7, 3)
    assert mask.shape == (3, 7)
    assert mask.dtype == np.bool_
    assert not mask.any()


def test_rasterising_pixel_outlines_gives_a_photo_sized_mask_back() -> None:
    rows, columns = np.mgrid[:1500, :2000]
    mask = (np.hypot(rows - 700, columns - 900) < 600) & (np.hypot(rows - 800, columns - 800) > 200)
    runs = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(runs == 1), np.argwhere(runs == -1)
    rows_as_boxes = [
        polygon([(x0, y), (x1, y), (x1, y + 1), (x0, y + 1)])
        for (y, x0), (_, x1) in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(rasterise(rows_as_boxes, 2000, 1500), mask)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (37, 53), (300, 200)])
def test_run_lengths_decode_as_pycocotools_decodes_them(size: tuple[int, int], density: float) -> None:
    height, width = size
    mask = np.random.default_rng(3).random(size) < density
    if height > 100:
        mask[20:180, 30:150] = True  # long runs: counts of several characters, and negative differences
    encoded = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    decoded = decode_rle(encoded["counts"].decode(), width, height)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.dtype == np.bool_


@given(hypothesis.extra.numpy.arrays(np.bool_, some.tuples(*2 * [some.integers(1, 12)])))
def test_masks_encode_as_pycocotools_encodes_them(mask: NDArray[np.bool_]) -> None:
    for same in (mask, 3 * mask.astype(np.uint8), np.asfortranarray(mask)):
        assert encode_rle(same) == pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


@given(some.lists(some.integers(1, 100_000), min_size=1, max_size=8), some.booleans())
def test_long_runs_encode_as_pycocotools_encodes_them(runs: list[int], starts_inside: bool) -> None:
    """Counts of several characters, and differences of either sign, in one column."""
    mask = np.repeat((np.arange(len(runs)) + starts_inside) % 2 == 1, runs)[:, np.newaxis]
    counts = encode_rle(mask)
    assert counts == pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    np.testing.assert_array_equal(decode_rle(counts, 1, len(mask)), mask)


@pytest.mark.parametrize("counts", ["", "1", "o", "54P2", "0n0"])
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="5 x 5"):
        decode_rle(counts, 5, 5)
