"""Seeds: masks that an object starts from, as run lengths or polygons, and the maps that they are."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand.raster import crossings, decode_rle
from polywand_server.errors import InvalidInputError
from polywand_server.regions import ProbabilityMap, Region, map_size

# A pixel of a map that is covered so far has a seed's inside around it, and not only a thin part.
FILLED = 0.9
# Of polygons with columns of pixels: more take too long to look at one by one.
MOST_CROSSINGS = 2**20
# OpenCV fills every pixel that an edge touches; drawn finer, that is an eighth of a pixel.
OVERSAMPLING = 4
# Of the fixed-point coordinates of what is drawn.
FRACTION_BITS = 8


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
    """Rings float32 [N, 2] (x, y, image pixels), exteriors and holes alike; inside is by the even-odd rule."""

    rings: tuple[NDArray[np.float32], ...]

    @cached_property
    def digest(self) -> str:
        """What tells this seed from another."""
        return _digest(*(ring.tobytes() for ring in self.rings))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(ring.nbytes for ring in self.rings)


Seed = RleSeed | PolygonSeed
Held = NDArray[np.bool_]


def seed_map(seed: Seed, width: int, height: int) -> ProbabilityMap:
    """Lay a seed out as the probabilities 0 to 1 of the region around it; costs milliseconds, so keep it off the loop.

    Raises:
        InvalidInputError: its run lengths are not those of the image, or nothing of it lies inside the image.
    """
    return _map_of_rle(seed, width, height) if isinstance(seed, RleSeed) else _map_of_polygons(seed, width, height)


def _map_of_rle(seed: RleSeed, width: int, height: int) -> ProbabilityMap:
    if (seed.width, seed.height) != (width, height):
        raise InvalidInputError(
            "prompt.seed.rle", f"it is of {seed.width} x {seed.height} pixels, and the image of {width} x {height}"
        )
    try:
        mask = decode_rle(seed.counts, width, height).view(np.uint8)
    except ValueError as error:
        raise InvalidInputError("prompt.seed.rle.counts", str(error)) from error
    left, top, box_width, box_height = cv2.boundingRect(mask)
    if box_width == 0:
        raise InvalidInputError("prompt.seed.rle.counts", "the mask is empty")
    region = _around(left, top, left + box_width, top + box_height)
    inner = mask[top : top + box_height, left : left + box_width]
    framed = cv2.copyMakeBorder(inner, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
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
    region = _around(left, top, right, bottom)
    holding = _holding(seed.rings, (left, top, right, bottom), region)
    if holding is not None and not holding.any():
        raise InvalidInputError("prompt.seed.polygons", "they hold no pixel of the image")
    fine = Region(
        *(region.left, region.top, region.width, region.height),
        (region.size[0] * OVERSAMPLING, region.size[1] * OVERSAMPLING),
    )
    coverage = np.zeros(fine.size, np.uint8)
    rings = [np.rint(fine.to_input(ring.astype(np.float64)) * 2**FRACTION_BITS).astype(np.int32) for ring in seed.rings]
    cv2.fillPoly(coverage, rings, 255, shift=FRACTION_BITS)
    values = cv2.resize(coverage, region.size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # What lies outside the image belongs to nobody.
    inside = np.zeros_like(values)
    rows, columns = region.inside(width, height)
    inside[rows, columns] = values[rows, columns]
    return ProbabilityMap(region, inside if holding is None else _with_thin_parts(inside, holding))


def _holding(rings: Sequence[NDArray[np.float32]], window: tuple[int, int, int, int], region: Region) -> Held | None:
    """Which pixels of a region's map have pixels of the image in them that are inside, by the contract's rule.

    window: left, top, right, bottom of the part of the image to look at, in the region. None: that would take too long.
    """
    left, top, right, bottom = window
    moved = [ring.astype(np.float64) - (left, top) for ring in rings]
    columns_met = (np.clip(ring[:, 0], 0, right - left) for ring in moved)
    if sum(float(np.abs(x - np.roll(x, 1)).sum()) for x in columns_met) > MOST_CROSSINGS:
        return None
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
    """Count pixels as covered where something runs that is too thin to fill any: cords, legs, masts.

    holding: where something is inside at all, and not only touched by an edge, such as a bridge of no width.
    """
    square = np.ones((3, 3), np.uint8)
    most = cv2.dilate(coverage, square)
    # Of those side by side that it touches, the ones that hold most of it.
    thin = (coverage > 0) & (coverage >= most / 2) & (most < FILLED)
    if holding is not None:
        thin &= cv2.dilate(holding.view(np.uint8), square) > 0  # what runs on between two such pixels, too
    coverage[thin] = 1
    return coverage


def _around(left: int, top: int, right: int, bottom: int) -> Region:
    """The region of these edges and one pixel of nothing around, so that the outline closes where the image goes on."""
    width, height = right - left + 2, bottom - top + 2
    return Region(left - 1, top - 1, width, height, map_size(width, height))


def _digest(*parts: bytes) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8))
        state.update(part)
    return state.hexdigest()
