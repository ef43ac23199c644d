"""Outlines, simplification and seeds whose work is out of proportion to their bytes: answered, or refused by a limit.

No test here measures time: that nothing takes long follows from the limits, which are what is tested.
"""

import functools

import numpy as np
import pytest
import shapely
import shapely.affinity
from numpy.typing import NDArray

from polywand import encode_rle, rasterise
from polywand.results import Polygon
from polywand_server.errors import TooLargeError
from polywand_server.geometry import fewer, lines, outlines, seeds, simplify
from polywand_server.geometry.outlines import count_crossings
from polywand_server.geometry.overlap import intersection_over_union
from polywand_server.geometry.rings import count_vertices, rings
from polywand_server.geometry.seeds import PolygonSeed, RleSeed, seed_cost, seed_map
from polywand_server.geometry.shapes import Form, OutputOptions, Shape, make_shape
from polywand_server.geometry.specks import without_specks
from polywand_server.images.regions import ProbabilityMap, Region

NOWHERE = np.zeros((0, 2))
SIDE = 340  # a tenth of the largest map's pixels

OPTIONS = [
    OutputOptions(tolerance=0, forms=(Form.POLYGONS, Form.RLE)),
    OutputOptions(),
    OutputOptions(tolerance=3),
    OutputOptions(tolerance=1000),
    OutputOptions(max_points=3),
    OutputOptions(max_points=100),
    OutputOptions(max_points=1000),
]


def disc(side: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - side / 2, columns - side / 2) < 0.4 * side


def checkerboard(side: int) -> NDArray[np.bool_]:
    return np.indices((side, side)).sum(axis=0) % 2 == 0


def dots(side: int) -> NDArray[np.bool_]:
    return (np.indices((side, side)) % 3 == 0).all(axis=0)


def noise(side: int, density: float) -> NDArray[np.bool_]:
    return np.random.default_rng(5).random((side, side)) < density


def serpentine(side: int) -> NDArray[np.bool_]:
    """One piece: rows that are joined at alternating ends."""
    mask = np.zeros((side, side), np.bool_)
    mask[::4, 1:-1] = True
    for number, row in enumerate(range(0, side - 4, 4)):
        mask[row : row + 5, 1 if number % 2 else side - 2] = True
    return mask


def hilbert(order: int) -> NDArray[np.bool_]:
    """A curve that comes near every point of a square."""
    path = np.zeros(1, np.complex128)
    for _ in range(order):
        size = abs(path.real).max() + 1
        turned = path.imag + 1j * path.real
        far = 2 * size - 1
        last = (far - path.imag) + 1j * (size - 1 - path.real)
        path = np.concatenate([turned, path + 1j * size, path + size * (1 + 1j), last])
    pixels = np.repeat(2 * path, 2)[:-1]
    pixels[1::2] = path[:-1] + path[1:]
    mask = np.zeros((2 << order, 2 << order), np.bool_)
    mask[pixels.imag.astype(int), pixels.real.astype(int)] = True
    return mask


def comb(side: int) -> NDArray[np.bool_]:
    mask = np.zeros((side, side), np.bool_)
    mask[:, ::2] = True
    mask[0] = True
    return mask


def plate(side: int) -> NDArray[np.bool_]:
    mask = np.ones((side, side), np.bool_)
    mask[1:-1:3, 1:-1:3] = False
    return mask


MASKS = {
    "a disc": disc(SIDE),
    "a checkerboard": checkerboard(SIDE),
    "dots 3 apart": dots(SIDE),
    "noise": noise(SIDE, 0.35),
    "noise of one piece": noise(SIDE, 0.62),
    "a serpentine": serpentine(SIDE),
    "a Hilbert curve": hilbert(7),
    "a comb": comb(SIDE),
    "a plate of holes": plate(SIDE),
}
SMALLER = {
    "a serpentine": serpentine(SIDE // 2),
    "a Hilbert curve": hilbert(6),
    "a comb": comb(SIDE // 2),
    "noise of one piece": noise(SIDE // 2, 0.62),
}
REFUSED = {"a checkerboard", "dots 3 apart", "noise"}  # too many parts are about as large as the largest


def as_map(mask: NDArray[np.bool_]) -> ProbabilityMap:
    height, width = mask.shape
    return ProbabilityMap(Region(0, 0, width, height, (height, width)), mask.astype(np.float32))


def shape_of(mask: NDArray[np.bool_], options: OutputOptions, keep: NDArray[np.float64] = NOWHERE) -> Shape:
    return make_shape(as_map(mask), 0.5, options, mask.shape[1], mask.shape[0], keep)


@functools.cache
def exact_outline(name: str) -> shapely.MultiPolygon:
    return shape_of(MASKS[name], OutputOptions(tolerance=0)).polygons


@functools.cache
def exact_outline_of_smaller(name: str) -> shapely.MultiPolygon:
    return shape_of(SMALLER[name], OutputOptions(tolerance=0)).polygons


def check_promises(shape: Shape, exact: shapely.MultiPolygon, options: OutputOptions) -> None:
    """What the contract says of a shape, by its own numbers."""
    assert shape.polygons.is_valid
    assert not shape.polygons.is_empty
    assert 0 <= shape.iou <= 1
    if options.max_points is not None:
        assert count_vertices(shape.polygons) <= options.max_points
    if options.tolerance is not None and options.max_points is None:
        assert shape.tolerance == options.tolerance
    lines = shapely.get_parts(shapely.segmentize(exact.boundary, 8.0))
    segments = shapely.STRtree([line for ring in lines for line in pairs(shapely.get_coordinates(ring))])
    corners = shapely.points(shapely.get_coordinates(shape.polygons))
    assert segments.query_nearest(corners, return_distance=True, all_matches=False)[1].max() < 1e-6
    if shape.tolerance < 50:
        between = shapely.points(shapely.get_coordinates(shapely.segmentize(shape.polygons, 1.0)))
        away = segments.query_nearest(between, return_distance=True, all_matches=False)[1].max()
        assert away <= shape.tolerance + 1e-6


def pairs(points: NDArray[np.float64]) -> NDArray[np.object_]:
    return shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_every_mask_has_a_shape_that_keeps_its_promises_or_is_over_a_limit_that_is_named(name, options):
    if name in REFUSED:
        with pytest.raises(TooLargeError, match=str(outlines.MAX_OUTLINE_RINGS)) as error:
            shape_of(MASKS[name], options)
        assert error.value.field == "prompt.output.threshold"
        return
    check_promises(shape_of(MASKS[name], options), exact_outline(name), options)


@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_large_outlines_keep_the_same_promises(name, options, monkeypatch):
    """With the sizes from which long rings are cut, crossings are repaired and budgets are met step by step."""
    exact = exact_outline_of_smaller(name)
    monkeypatch.setattr(lines, "WHOLE_VERTICES", 2**9)
    monkeypatch.setattr(lines, "PIECE_VERTICES", 2**8)
    monkeypatch.setattr(simplify, "TOPOLOGY_VERTICES", 0)
    monkeypatch.setattr(simplify, "SEARCH_VERTICES", 2**9)
    monkeypatch.setattr(fewer, "HEAP_VERTICES", 2**7)
    check_promises(shape_of(SMALLER[name], options), exact, options)


def test_an_outline_over_the_limit_of_vertices_is_refused_before_it_is_traced(monkeypatch):
    monkeypatch.setattr(outlines, "_filled", None)
    with pytest.raises(TooLargeError, match=rf"vertices, and the limit is {outlines.MAX_OUTLINE_VERTICES}") as error:
        make_shape(as_map(serpentine(1000)), 0.5, OutputOptions(), 1000, 1000, NOWHERE, "polygons.output.threshold")
    assert error.value.field == "polygons.output.threshold"


def test_rings_over_the_limit_are_refused_before_any_is_an_object(monkeypatch):
    monkeypatch.setattr(outlines, "assemble", None)
    with pytest.raises(TooLargeError, match=rf"rings .*, and the limit is {outlines.MAX_OUTLINE_RINGS}"):
        shape_of(dots(SIDE), OutputOptions())


def test_noise_over_the_limit_is_answered_without_its_specks(monkeypatch):
    mask = noise(SIDE, 0.7)
    options = OutputOptions(tolerance=0)
    expected = shape_of(mask, options)
    monkeypatch.setattr(outlines, "MAX_OUTLINE_VERTICES", count_crossings(as_map(mask), 0.5, SIDE, SIDE) // 2)
    shape = shape_of(mask, options)
    assert len(rings(shape.polygons)) == len(rings(expected.polygons))
    assert intersection_over_union(shape.polygons, expected.polygons) > 0.999


def test_specks_with_a_click_in_them_stay():
    mask = disc(SIDE)
    mask[2:4, 2:4] = True
    mask[9:11, 2:4] = True
    mask[SIDE // 2, SIDE // 2] = False
    mask[SIDE // 2 + 20, SIDE // 2] = False
    keep = np.array([[2.6, 2.6], [SIDE / 2 - 0.4, SIDE / 2 + 0.4]])
    left = without_specks(mask.astype(np.float32), mask, keep) > 0.5
    expected = mask.copy()
    expected[9:11, 2:4] = False
    expected[SIDE // 2 + 20, SIDE // 2] = True
    np.testing.assert_array_equal(left, expected)


def test_a_narrow_ditch_around_an_island_is_no_speck():
    mask = np.ones((SIDE, SIDE), np.bool_)
    mask[100:200, 100:200] = False
    mask[101:199, 101:199] = True
    np.testing.assert_array_equal(without_specks(mask.astype(np.float32), mask, NOWHERE) > 0.5, mask)


@pytest.mark.parametrize("name", MASKS)
def test_the_crossings_are_counted_before_there_is_an_outline(name, monkeypatch):
    mask = np.pad(MASKS[name], 1)
    height, width = mask.shape
    traced = outlines._filled(mask.astype(np.float32), 0.5)
    count = count_crossings(as_map(mask), 0.5, width, height)
    # The first vertex of every ring is repeated; each side of the map counts two more.
    assert count == len(traced[0]) - (len(traced[1]) - 1) + 8


def test_what_reaches_the_maps_edge_has_no_more_vertices_than_were_counted():
    for mask in (np.ones((40, 30), np.bool_), comb(60), plate(61), noise(80, 0.5)):
        shape = shape_of(mask, OutputOptions(tolerance=0), np.argwhere(np.ones_like(mask))[:, ::-1] + 0.5)
        assert count_vertices(shape.polygons) <= count_crossings(as_map(mask), 0.5, mask.shape[1], mask.shape[0])


def test_the_overlap_of_thin_shapes_with_many_vertices_is_counted():
    turns = np.arange(4000)
    line = shapely.LineString(np.stack([turns, 0.4 * (turns % 2)], axis=1))
    wire = shapely.MultiPolygon([shapely.buffer(line, 1.0, join_style="mitre")])
    moved = shapely.affinity.translate(wire, 0, 0.5)
    exact = wire.intersection(moved).area / wire.union(moved).area
    assert intersection_over_union(wire, moved) == pytest.approx(exact, abs=0.03)


def zigzag(count: int) -> NDArray[np.float64]:
    return np.stack([np.where(np.arange(count) % 2 == 0, 0, SIDE), np.linspace(0, SIDE, count)], axis=1)


def random_rings(count: int, vertices: int, reach: float) -> list[NDArray[np.float64]]:
    random = np.random.default_rng(5)
    return list(random.uniform(-reach, SIDE + reach, (count, vertices, 2)))


POLYGONS = {
    "a zigzag across": [zigzag(2000)],
    "a zigzag up": [zigzag(2000)[:, ::-1]],
    "crossings at random": random_rings(1, 2000, 0),
    "triangles at random": random_rings(666, 3, 0),
    "vertices far outside": random_rings(1, 2000, 1e6),
}


@pytest.mark.parametrize("limit", [seeds.MOST_EDGE_PIXELS, 2**18, 2**15])
@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_that_cross_themselves_are_filled_by_the_rule_on_a_map_as_fine_as_the_limit_allows(
    name, limit, monkeypatch
):
    monkeypatch.setattr(seeds, "MOST_EDGE_PIXELS", limit)
    seed = PolygonSeed(tuple(ring.astype(np.float32) for ring in POLYGONS[name]))
    planted = seed_map(seed, SIDE, SIDE)
    reach = planted.region.width * planted.region.height
    assert np.prod(planted.region.size) <= reach
    assert seed_cost(seed, SIDE, SIDE) <= 5 * SIDE**2 + 20 * (limit + seeds.MOST_CROSSINGS)
    if planted.region.size == (planted.region.height, planted.region.width):
        return
    # Coarser: each pixel still has the share of inside that the rule gives, as well as one sample a pixel can tell.
    polygons = [Polygon(ring, ()) for ring in seed.rings]
    assert planted.values.mean() == pytest.approx(rasterise(polygons, SIDE, SIDE).mean(), abs=0.1)


@pytest.mark.parametrize("name", POLYGONS)
def test_their_outline_keeps_its_promises(name):
    planted = seed_map(PolygonSeed(tuple(ring.astype(np.float32) for ring in POLYGONS[name])), SIDE, SIDE)
    shape = make_shape(planted, 0.5, OutputOptions(), SIDE, SIDE, NOWHERE)
    exact = make_shape(planted, 0.5, OutputOptions(tolerance=0), SIDE, SIDE, NOWHERE)
    check_promises(shape, exact.polygons, OutputOptions())


def test_a_seeds_run_lengths_take_memory_of_what_they_hold_and_not_of_the_image():
    mask = np.zeros((300, 400), np.bool_)
    mask[100:120, 200:230] = True
    planted = seed_map(RleSeed(encode_rle(mask), 400, 300), 400, 300)
    assert (planted.region.left, planted.region.top) == (199, 99)
    np.testing.assert_array_equal(planted.values[1:-1, 1:-1], np.ones((20, 30), np.float32))
    assert planted.values.sum() == 600


def test_a_seed_over_columns_edges_begins_at_the_images_top():
    mask = np.zeros((30, 40), np.bool_)
    mask[20:, 7] = mask[:, 8] = mask[:4, 9] = True  # one run
    planted = seed_map(RleSeed(encode_rle(mask), 40, 30), 40, 30)
    assert planted.region == Region(6, -1, 5, 32, (32, 5))
    np.testing.assert_array_equal(planted.values[1:-1, 1:-1] > 0.5, mask[:, 7:10])
