"""Seeds: masks that an object starts from, as run lengths or polygons, and their outlines and maps."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_contract.raster import column_runs, crossings, draw_runs, edges, fill_rings, run_lengths
from polywand_server.errors import InvalidInputError
from polywand_server.geometry.parts import Part, largest_first, own_outline, part_runs
from polywand_server.geometry.pixels import Runs, pixel_outline, united
from polywand_server.geometry.rings import rings as rings_of
from polywand_server.geometry.rings import vertices as vertices_of
from polywand_server.geometry.shapes import SMALLEST_DEFAULT_TOLERANCE, OutputOptions, Shape, shape_of
from polywand_server.images.regions import LARGEST_MAP, ProbabilityMap, Region, map_size

# A map pixel with at least this coverage lies inside a seed, and not on a thin part.
FILLED = 0.9
# Crossings of polygons with the image's pixel columns; more take too long to process.
MOST_CROSSINGS = 2**20
# Pixels of a map that edges run through, of all edges together; the map of longer edges is coarser.
MOST_EDGE_PIXELS = 2**22
# Size of a seed whose outline is drawn quickly, with a few thousand corners: its bytes, and its edge pixels.
QUICK_BYTES, QUICK_EDGE_PIXELS = 2**14, 2**17
# Coverage is sampled at this many points along each side of a map's pixel, or at fewer where edges are long.
OVERSAMPLING = 4
# Costs in `seed_cost`, in pixels: of a character of run lengths, a pixel of a map, and a pixel on an edge.
CHARACTER_COST, MAP_PIXEL_COST, EDGE_PIXEL_COST = 20, 5, 20


@dataclass(frozen=True)
class RleSeed:
    """COCO's compressed run lengths of a mask; width, height: of the image, in pixels."""

    counts: str
    width: int
    height: int

    @cached_property
    def digest(self) -> str:
        """What tells this seed from another."""
        return _digest(f"{self.width} {self.height} {self.counts}".encode())

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return len(self.counts)


@dataclass(frozen=True, eq=False)
class PolygonSeed:
    """Rings float32 [N, 2] (x, y, image pixels), part after part, exteriors and holes alike.

    part_sizes: rings of each part; empty: all rings are one part. Inside a part is by the even-odd rule over its rings,
    and what any part covers is inside.
    """

    rings: tuple[NDArray[np.float32], ...]
    part_sizes: tuple[int, ...] = ()

    @property
    def parts(self) -> list[Part]:
        """The rings of each part."""
        bounds = [0, *accumulate(self.part_sizes or [len(self.rings)])]
        return [self.rings[begin:end] for begin, end in pairwise(bounds)]

    @cached_property
    def digest(self) -> str:
        """What tells this seed from another."""
        sizes = np.array(self.part_sizes, np.int64)
        return _digest(sizes.tobytes(), *(ring.tobytes() for ring in self.rings))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(ring.nbytes for ring in self.rings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a few arrays: thousands of small ones would block the event loop."""
        sizes = np.array([len(ring) for ring in self.rings])
        return _seed_of, (np.concatenate(self.rings), sizes, np.array(self.part_sizes, np.int64))


def _seed_of(vertices: NDArray[np.float32], sizes: NDArray[np.int64], part_sizes: NDArray[np.int64]) -> PolygonSeed:
    return PolygonSeed(tuple(np.split(vertices, np.cumsum(sizes)[:-1])), tuple(part_sizes.tolist()))


Seed = RleSeed | PolygonSeed
Held = NDArray[np.bool_]
Rings = Sequence[NDArray[np.float32 | np.float64]]


def seed_map(seed: Seed, width: int, height: int) -> ProbabilityMap:
    """Fill the map of a seed: its coverage, 0 to 1, of the region around it.

    width, height: of the image, in pixels. Takes milliseconds: call it off the event loop.

    Raises:
        InvalidInputError: its run lengths do not fit the image, or no pixel of it lies inside the image.
    """
    return _map_of_rle(seed, width, height) if isinstance(seed, RleSeed) else _map_of_polygons(seed, width, height)


def is_exact(seed: Seed, width: int, height: int) -> bool:
    """Whether `seed_shape` can draw a seed; it cannot where lines cross too many pixels."""
    return isinstance(seed, RleSeed) or _edge_pixels(seed.rings, (0, 0, width, height)) <= MOST_CROSSINGS


def is_quick(seed: Seed, width: int, height: int) -> bool:
    """Whether `seed_shape` takes about 10 ms at most, as for hand-drawn seeds."""
    if seed.nbytes > QUICK_BYTES:
        return False
    return isinstance(seed, RleSeed) or _edge_pixels(seed.rings, (0, 0, width, height)) <= QUICK_EDGE_PIXELS


def seed_shape(seed: Seed, options: OutputOptions, width: int, height: int) -> Shape:
    """Outline a seed that `is_exact`, pixel for pixel and with its smallest parts.

    Vertices of polygons stay unchanged if no tolerance is requested, so that a shape does not change when it is opened
    again and again. Takes milliseconds: call it off the event loop. width, height: of the image, in pixels.

    Raises:
        InvalidInputError: as `seed_map`. TooLargeError: the outline has too many vertices or rings.
    """
    own = own_outline(seed.parts, width, height) if isinstance(seed, PolygonSeed) else None
    if own is not None:
        shape = shape_of(own, options, width, height, 0.0)
    else:
        runs = runs_of(seed, width, height)
        outline = pixel_outline(runs, "prompt.seed")
        shape = shape_of(outline, options, width, height, SMALLEST_DEFAULT_TOLERANCE)
        shape = replace(shape, area=float(runs.area))  # without the slopes of steps by one pixel
    return replace(shape, polygons=largest_first(shape.polygons.geoms))  # the order that this shape has as a seed, too


def seed_cost(seed: Seed, width: int, height: int) -> int:
    """Estimate an upper bound of the time of `seed_map`, in pixels of a decoded mask: about 3 ns of one core each.

    width, height: of the image, in pixels. Takes no longer than a millisecond itself.
    """
    map_pixels = MAP_PIXEL_COST * min(width * height, LARGEST_MAP)
    if isinstance(seed, RleSeed):
        return width * height + map_pixels + CHARACTER_COST * len(seed.counts)
    edge_pixels = _edge_pixels(seed.rings, (0, 0, width, height))
    drawn = min(OVERSAMPLING * edge_pixels, MOST_EDGE_PIXELS) + min(edge_pixels, MOST_CROSSINGS)
    return map_pixels + int(EDGE_PIXEL_COST * drawn)


def runs_of(seed: Seed, width: int, height: int) -> Runs:
    """Return the pixels of a seed in an image of this size. Raises InvalidInputError: as `seed_map`, of run lengths."""
    if isinstance(seed, PolygonSeed):
        return part_runs(seed.parts, width, height)
    if (seed.width, seed.height) != (width, height):
        raise InvalidInputError(
            "prompt.seed.rle", f"it is of {seed.width} x {seed.height} pixels, and the image of {width} x {height}"
        )
    try:
        columns, tops, bottoms = column_runs(run_lengths(seed.counts, width, height), height)
    except ValueError as error:
        raise InvalidInputError("prompt.seed.rle.counts", str(error)) from error
    if columns.size == 0:
        raise InvalidInputError("prompt.seed.rle.counts", "the mask is empty")
    return united(columns, tops, bottoms)


def _map_of_rle(seed: RleSeed, width: int, height: int) -> ProbabilityMap:
    runs = runs_of(seed, width, height)
    columns, tops, bottoms = runs.columns, runs.tops, runs.bottoms
    left, top, right, bottom = int(columns[0]), int(tops.min()), int(columns[-1]) + 1, int(bottoms.max())
    region = _around(left, top, right, bottom)
    framed = draw_runs(columns - (left - 1), tops - (top - 1), bottoms - (top - 1), region.width, region.height)
    framed *= 255
    coverage = cv2.resize(framed, region.size[::-1], interpolation=cv2.INTER_AREA)
    return ProbabilityMap(region, _with_thin_parts(coverage.astype(np.float32) / 255))


def _map_of_polygons(seed: PolygonSeed, width: int, height: int) -> ProbabilityMap:
    vertices = np.concatenate(seed.rings)
    (left, top), (right, bottom) = vertices.min(axis=0), vertices.max(axis=0)
    left, top = max(0, math.floor(left)), max(0, math.floor(top))
    right, bottom = min(width, math.ceil(right)), min(height, math.ceil(bottom))
    if left >= right or top >= bottom:
        raise InvalidInputError("prompt.seed.polygons", f"they lie outside: the image spans 0..{width} by 0..{height}")
    rings = _united_rings(seed, width, height)
    region = _around(left, top, right, bottom, _edge_pixels(rings, (left, top, right, bottom)))
    holding = _holding(rings, (left, top, right, bottom), region)
    if holding is not None and not holding.any():
        raise InvalidInputError("prompt.seed.polygons", "they hold no pixel of the image")
    values = _coverage(rings, region)
    # Outside the image, nothing is covered.
    inside = np.zeros_like(values)
    rows, columns = region.inside(width, height)
    inside[rows, columns] = values[rows, columns]
    return ProbabilityMap(region, inside if holding is None else _with_thin_parts(inside, holding))


def _united_rings(seed: PolygonSeed, width: int, height: int) -> Rings:
    """The rings of a seed or, where several parts may overlap, those of its outline: even-odd over all of them."""
    if len(seed.part_sizes) < 2 or not is_exact(seed, width, height):
        return seed.rings
    own = own_outline(seed.parts, width, height)
    if own is None:
        own = pixel_outline(part_runs(seed.parts, width, height), "prompt.seed")
    return [vertices_of(ring) for ring in rings_of(own)] or seed.rings


def _edge_pixels(rings: Rings, window: tuple[int, int, int, int]) -> float:
    """Sum the lengths of all edges along x and y, in image pixels, after clipping to a window.

    window: left, top, right, bottom.
    """
    starts, ends = edges(rings)
    return float(np.abs(np.clip(starts, window[:2], window[2:]) - np.clip(ends, window[:2], window[2:])).sum())


def _coverage(rings: Rings, region: Region) -> NDArray[np.float32]:
    """Compute the coverage of each pixel of a region's map, float32 [h, w] in 0..1."""
    length = _edge_pixels(rings, (region.left, region.top, region.left + region.width, region.top + region.height))
    finer = OVERSAMPLING
    while finer > 1 and length * max(region.scale) * finer > MOST_EDGE_PIXELS:
        finer //= 2
    height, width = region.size[0] * finer, region.size[1] * finer
    scale = np.array(region.scale) * finer
    moved = [(ring.astype(np.float64) - (region.left, region.top)) * scale for ring in rings]
    fine = fill_rings(moved, width, height)
    fine *= 255
    coverage = _reduced(fine, region)
    if finer == OVERSAMPLING:  # parts thinner than the samples' distance are drawn by their edges, which are wider
        cv2.polylines(fine, [np.rint(ring - 0.5).astype(np.int32) for ring in moved], isClosed=True, color=255)
        is_thin = cv2.dilate(coverage, np.ones((3, 3), np.uint8)) < FILLED
        coverage[is_thin] = _reduced(fine, region)[is_thin]
    return coverage


def _reduced(fine: NDArray[np.uint8], region: Region) -> NDArray[np.float32]:
    """Average values of 0 or 255 over each pixel of a region's map, to 0..1."""
    reduced: NDArray[np.float32] = cv2.resize(fine, region.size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    reduced /= 255
    return reduced


def _holding(rings: Rings, window: tuple[int, int, int, int], region: Region) -> Held | None:
    """Find the pixels of a region's map, bool [h, w], that hold image pixels inside, by the contract's rule.

    window: left, top, right, bottom of a part of the image, inside the region. None if that would take too long.
    """
    if _edge_pixels(rings, window) > MOST_CROSSINGS:
        return None
    left, top, right, bottom = window
    moved = [ring.astype(np.float64) - (left, top) for ring in rings]
    columns, rows = crossings(moved, right - left, bottom - top)
    order = np.lexsort((rows, columns))
    enters, leaves = rows[order].reshape(-1, 2).T  # closed rings cross every column an even number of times
    is_run = enters < leaves
    enters, leaves, columns = enters[is_run], leaves[is_run], columns[order][::2][is_run]
    height, width = region.size
    scale_x, scale_y = region.scale
    column = ((columns + 0.5 + left - region.left) * scale_x).astype(np.int64)
    first, last = (((row + 0.5 + top - region.top) * scale_y).astype(np.int64) for row in (enters, leaves - 1))
    changes = np.zeros((height + 1, width), np.int32)
    np.add.at(changes, (first, column), 1)
    np.add.at(changes, (last + 1, column), -1)
    return changes[:height].cumsum(axis=0) > 0


def _with_thin_parts(coverage: NDArray[np.float32], holding: Held | None = None) -> NDArray[np.float32]:
    """Set pixels on parts that are too thin to fill any pixel to covered: cords, legs, masts.

    holding: pixels that hold image pixels inside, and not only an edge, such as a bridge without width.
    """
    square = np.ones((3, 3), np.uint8)
    most = cv2.dilate(coverage, square)
    # Of neighbouring pixels that a thin part touches, those that hold most of it.
    thin = (coverage > 0) & (coverage >= most / 2) & (most < FILLED)
    if holding is not None:
        thin &= cv2.dilate(holding.view(np.uint8), square) > 0  # gaps between two such pixels, too
    coverage[thin] = 1
    return coverage


def _around(left: int, top: int, right: int, bottom: int, edge_pixels: float = 0) -> Region:
    """Make the region of these edges and an empty margin of one pixel, so that the outline closes inside the image.

    edge_pixels: of the rings to draw; the map is coarser if drawing would take too long.
    """
    width, height = right - left + 2, bottom - top + 2
    size = map_size(width, height)
    excess = edge_pixels * max(size[0] / height, size[1] / width) / MOST_EDGE_PIXELS
    if excess > 1:
        size = max(1, round(size[0] / excess)), max(1, round(size[1] / excess))
    return Region(left - 1, top - 1, width, height, size)


def _digest(*parts: bytes) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8))
        state.update(part)
    return state.hexdigest()
