"""A seed alone gives its own outline: the same pixels, the smallest parts, and the same vertices again and again."""

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from polywand import decode_rle, encode_rle, rasterise
from polywand.results import Polygon
from polywand_server.errors import TooLargeError
from polywand_server.geometry import pixels
from polywand_server.geometry.rings import count_vertices, rings, vertices
from polywand_server.geometry.seeds import PolygonSeed, RleSeed, is_exact, seed_map, seed_shape
from polywand_server.geometry.shapes import Form, OutputOptions, Shape, make_shape

WIDTH, HEIGHT = 60, 50
EXACT = OutputOptions(tolerance=0, forms=(Form.POLYGONS, Form.RLE))
SQUARE = [(10, 10), (30, 10), (30, 30), (10, 30)]
Ring = list[tuple[float, float]]


def of_mask(mask: NDArray[np.bool_]) -> RleSeed:
    return RleSeed(encode_rle(mask), mask.shape[1], mask.shape[0])


def of_parts(*parts: list[Ring]) -> PolygonSeed:
    """Parts of an exterior and holes each."""
    arrays = tuple(np.array(ring, np.float32) for part in parts for ring in part)
    return PolygonSeed(arrays, tuple(map(len, parts)))


def again(shape: Shape) -> PolygonSeed:
    """What was answered, as the next seed: float32 on the wire."""
    return of_parts(*[[vertices(ring).tolist() for ring in rings(part)] for part in shape.polygons.geoms])


def pixels_of(seed: PolygonSeed) -> NDArray[np.bool_]:
    """What any part covers."""
    masks = [rasterise([Polygon(part[0], tuple(part[1:]))], WIDTH, HEIGHT) for part in seed.parts]
    return np.logical_or.reduce(masks)


def check(shape: Shape, mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    assert shape.rle is not None
    np.testing.assert_array_equal(decode_rle(shape.rle, width, height), mask)
    parts = [
        Polygon(*(np.float32(vertices(part.exterior)), tuple(np.float32(vertices(hole)) for hole in part.interiors)))
        for part in shape.polygons.geoms
    ]
    np.testing.assert_array_equal(rasterise(parts, width, height), mask)
    assert shape.polygons.is_valid
    assert all(part.exterior.is_ccw for part in shape.polygons.geoms)
    assert not any(hole.is_ccw for part in shape.polygons.geoms for hole in part.interiors)
    areas = [part.area for part in shape.polygons.geoms]
    assert areas == sorted(areas, reverse=True)


def drawn(*marks: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """A mask of rectangles (top, left, bottom, right), each of which turns inside to outside and back."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for top, left, bottom, right in marks:
        mask[top:bottom, left:right] ^= True
    return mask


MASKS = {
    "one pixel": (drawn((7, 9, 8, 10)), 1, 1),
    "a plate with an island and a hole of one pixel": (drawn((5, 5, 45, 40), (9, 9, 10, 10), (2, 50, 3, 51)), 2, 3),
    "the whole image": (drawn((0, 0, HEIGHT, WIDTH)), 1, 1),
    "corners of the image": (drawn((0, 0, 1, 1), (49, 59, 50, 60), (0, 59, 1, 60), (49, 0, 50, 1)), 4, 4),
    "islands in holes": (drawn((5, 5, 40, 50), (8, 8, 37, 47), (12, 12, 33, 43), (20, 20, 21, 21)), 2, 4),
    "pixels that touch diagonally": (drawn((5, 5, 6, 6), (6, 6, 7, 7), (7, 5, 8, 6)), 1, 1),
    "holes that touch diagonally": (drawn((2, 2, 20, 20), (5, 5, 6, 6), (6, 6, 7, 7)), 1, 3),
    "a frame": (drawn((0, 0, HEIGHT, WIDTH), (1, 1, HEIGHT - 1, WIDTH - 1)), 1, 2),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_alone_gives_its_own_outline(name):
    mask, parts, lines = MASKS[name]
    shape = seed_shape(of_mask(mask), EXACT, WIDTH, HEIGHT)
    check(shape, mask)
    assert (len(shape.polygons.geoms), len(rings(shape.polygons))) == (parts, lines)
    rows, columns = np.nonzero(mask)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert shape.polygons.bounds == box
    assert shape.area == mask.sum()
    assert shape.polygons.area == pytest.approx(shape.area, abs=0.3)


@given(seed=st.integers(0, 10_000), density=st.floats(0.02, 0.98), width=st.integers(1, 20), height=st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_any_mask_alone_gives_its_own_outline(seed, density, width, height):
    mask = np.random.default_rng(seed).random((height, width)) < density
    if not mask.any():
        return
    shape = seed_shape(of_mask(mask), EXACT, width, height)
    check(shape, mask)
    assert len(shape.polygons.geoms) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def test_a_square_of_pixels_has_four_corners():
    shape = seed_shape(of_mask(drawn((10, 10, 30, 30))), OutputOptions(), WIDTH, HEIGHT)
    assert (shape.area, shape.tolerance, count_vertices(shape.polygons)) == (400, 0.5, 4)


POLYGONS = {
    "a square": of_parts([SQUARE]),
    "a square the other way round": of_parts([SQUARE[::-1]]),
    "a square between the pixels": of_parts([[(x + 0.3, y + 0.7) for x, y in SQUARE]]),
    "a square that is closed": of_parts([[*SQUARE, SQUARE[0]]]),
    "vertices that stand twice": of_parts([[corner for corner in SQUARE for _ in range(2)]]),
    "a hole of less than a pixel": of_parts([SQUARE, [(20, 20), (20, 20.4), (20.4, 20.4)]]),
    "an island of less than a pixel": of_parts([SQUARE], [[(40, 40), (40.4, 40), (40.4, 40.4)]]),
    "an island in a hole": of_parts(
        [SQUARE, [(12, 12), (12, 28), (28, 28), (28, 12)]], [[(15, 15), (18, 15), (18, 18)]]
    ),
}


@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_alone_come_back_as_they_are(name):
    seed = POLYGONS[name]
    shape = seed_shape(seed, OutputOptions(forms=(Form.POLYGONS, Form.RLE)), WIDTH, HEIGHT)
    check(shape, pixels_of(seed))
    assert (shape.tolerance, shape.iou, len(rings(shape.polygons))) == (0, 1, len(seed.rings))
    for before, after in zip(seed.rings, rings(shape.polygons), strict=True):
        assert {tuple(corner) for corner in before.tolist()} == {tuple(corner) for corner in vertices(after).tolist()}
        assert shapely.Polygon(before).area == shapely.Polygon(after).area


UNITED = {
    "parts that overlap, as COCO has them": (of_parts([SQUARE], [[(20, 20), (40, 20), (40, 40), (20, 40)]]), 700, 1),
    "a part that stands twice": (of_parts([SQUARE], [SQUARE]), 400, 1),
    "a part inside another": (of_parts([SQUARE], [[(15, 15), (20, 15), (20, 20)]]), 400, 1),
    "parts along an edge": (of_parts([SQUARE], [[(30, 10), (40, 10), (40, 30), (30, 30)]]), 600, 1),
    "parts at a corner": (of_parts([SQUARE], [[(30, 30), (40, 30), (40, 40), (30, 40)]]), 500, 2),
    "a part over another's hole": (
        of_parts([SQUARE, [(12, 12), (12, 28), (28, 28), (28, 12)]], [[(11, 11), (29, 11), (29, 20), (11, 20)]]),
        *(400 - 16 * 8, 1),
    ),
    "a bow tie": (of_parts([[(10, 10), (30, 30), (30, 10), (10, 30)]]), 200, 2),
    "a star of one line": (of_parts([[(30.1, 5.3), (42.2, 41.1), (11.4, 19.6), (49.3, 19.2), (18.7, 41.9)]]), None, 5),
    "a bridge of no width": (
        of_parts([[(5, 5), (9, 5), (9, 7), (20, 7), (20, 9), (20, 7), (9, 7), (9, 9), (5, 9)]]),
        16,
        1,
    ),
    "beyond the image": (of_parts([[(-20, -20), (10, -20), (10, 10), (-20, 10)]]), 100, 1),
    "around the image": (of_parts([[(-20, -20), (90, -20), (90, 90), (-20, 90)]]), WIDTH * HEIGHT, 1),
    "out of the image and in again": (of_parts([[(50, 5), (80, 20), (50, 35), (80, 12), (80, 28)]]), None, 2),
}


@pytest.mark.parametrize("name", UNITED)
def test_polygons_that_are_no_outline_become_one(name):
    seed, area, parts = UNITED[name]
    shape = seed_shape(seed, EXACT, WIDTH, HEIGHT)
    check(shape, pixels_of(seed))
    assert area is None or shape.area == pytest.approx(area, abs=0.02)
    assert len(shape.polygons.geoms) == parts
    planted = seed_map(seed, WIDTH, HEIGHT)
    assert planted.values.sum() / np.prod(planted.region.scale) == pytest.approx(shape.area, rel=0.1, abs=8)


@given(seed=st.integers(0, 10_000), grid=st.sampled_from([1, 4, 1000]), reach=st.sampled_from([-5, 20]))
@settings(max_examples=150, deadline=None)
def test_any_polygons_alone_give_their_pixels(seed, grid, reach):
    random = np.random.default_rng(seed)
    parts = [
        [
            (np.rint(random.uniform(-reach, HEIGHT + reach, (random.integers(3, 9), 2)) * grid) / grid).tolist()
            for _ in range(random.integers(1, 3))
        ]
        for _ in range(random.integers(1, 4))
    ]
    shape = seed_shape(of_parts(*parts), EXACT, WIDTH, HEIGHT)
    check(shape, pixels_of(of_parts(*parts)))


def lines(thickness: int) -> NDArray[np.bool_]:
    """A cord across a large image, a mast and a sloping cable; they meet nowhere."""
    mask = np.zeros((2000, 3000), np.uint8)
    cv2.line(mask, (20, 50), (2980, 50), 1, thickness)
    cv2.line(mask, (60, 200), (60, 1980), 1, thickness)
    cv2.line(mask, (200, 1940), (2940, 200), 1, thickness)
    return mask.astype(np.bool_)


def reached(found: NDArray[np.bool_], wanted: NDArray[np.bool_], distance: int) -> float:
    """How much of what is wanted has something found so near, in pixels."""
    near = cv2.dilate(found.astype(np.uint8), np.ones((2 * distance + 1, 2 * distance + 1), np.uint8))
    return float(near[wanted].mean())


@pytest.mark.parametrize("thickness", [1, 2, 3, 5])
def test_thin_parts_of_a_large_seed_are_on_the_map_that_the_network_is_shown(thickness):
    """No map of a megapixel resolves them; still nothing breaks off, and nothing is drawn where nothing is."""
    mask = lines(thickness)
    alone = seed_shape(of_mask(mask), EXACT, 3000, 2000)
    for seed in (of_mask(mask), again(alone)):
        shape = make_shape(seed_map(seed, 3000, 2000), 0.5, EXACT, 3000, 2000, np.zeros((0, 2)))
        found = decode_rle(shape.rle or "", 3000, 2000)
        assert isinstance(seed, PolygonSeed) or len(shape.polygons.geoms) == 3
        assert reached(found, mask, 2) > 0.995
        assert reached(mask, found, 5) > 0.995


def test_a_sliver_that_holds_few_pixels_is_on_that_map_from_end_to_end():
    sloping = of_parts([[(10, 40), (2990, 1900), (2990, 1900.7), (10, 40.7)]])
    shape = make_shape(seed_map(sloping, 3000, 2000), 0.5, EXACT, 3000, 2000, np.zeros((0, 2)))
    assert decode_rle(shape.rle or "", 3000, 2000).any(axis=0)[20:2980].all()


def star(points: int) -> Ring:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = 20 * (1 + 0.3 * np.sin(5 * angle))
    return np.stack([28 + radius * np.cos(angle), 25 + radius * np.sin(angle)], axis=1).tolist()


def blots(seed: int) -> NDArray[np.bool_]:
    noise = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 3) > 0.05


@pytest.mark.parametrize("ring", [SQUARE, [(x + 0.3, y + 0.7) for x, y in SQUARE], star(60)])
def test_the_map_that_the_network_is_shown_is_as_large_as_the_seed(ring):
    assert seed_map(of_parts([ring]), WIDTH, HEIGHT).values.sum() == pytest.approx(shapely.Polygon(ring).area, rel=4e-3)


STARTS = {"a star": of_parts([star(60)]), **{f"blots {number}": of_mask(blots(number)) for number in range(4)}}
STARTS |= {"small parts": of_mask(MASKS["islands in holes"][0]), "a bow tie": UNITED["a bow tie"][0]}


@pytest.mark.parametrize("tolerance", [None, 0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("name", STARTS)
def test_opened_again_and_again_nothing_changes(name, tolerance):
    options = OutputOptions(tolerance=tolerance)
    first = shape = seed_shape(STARTS[name], options, WIDTH, HEIGHT)
    for _ in range(30):
        before, shape = shape, seed_shape(again(shape), options, WIDTH, HEIGHT)
    assert shape.polygons.equals_exact(before.polygons)
    assert shape.polygons.equals_exact(first.polygons)


@pytest.mark.parametrize(("limit", "what"), [("MAX_OUTLINE_VERTICES", "vertices"), ("MAX_OUTLINE_RINGS", "rings")])
def test_a_mask_over_the_limits_is_refused(limit, what, monkeypatch):
    mask = (np.indices((HEIGHT, WIDTH)) % 3 == 0).all(axis=0)
    monkeypatch.setattr(pixels, limit, 20)
    with pytest.raises(TooLargeError, match=f"{what}.* and the limit is 20") as error:
        seed_shape(of_mask(mask), OutputOptions(), WIDTH, HEIGHT)
    assert error.value.field == "prompt.seed"


def test_lines_that_cross_too_often_become_the_outline_of_their_pixels(monkeypatch):
    """Thousands of crossings are not cut one by one, which would take seconds."""
    monkeypatch.setattr(shapely, "polygonize", None)
    seed = of_parts([np.random.default_rng(5).uniform(0, HEIGHT, (400, 2)).tolist()])
    shape = seed_shape(seed, EXACT, WIDTH, HEIGHT)
    check(shape, pixels_of(seed))


def test_what_cannot_be_told_pixel_by_pixel_is_known_beforehand():
    wide = np.stack([np.tile([0.0, 4000.0], 10_000), np.repeat(np.linspace(10, 90, 10_000), 2)], axis=1)
    assert not is_exact(PolygonSeed((wide.astype(np.float32),)), 4000, 100)
    assert is_exact(PolygonSeed((wide.astype(np.float32),)), 40, 100)
