"""Outlines: the level line of a probability map as polygons with sub-pixel edges, in image coordinates."""

from dataclasses import dataclass

import contourpy
import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.errors import TooLargeError
from polywand_server.geometry.rings import assemble
from polywand_server.geometry.specks import SPECK_SHARE, without_specks
from polywand_server.images.regions import ProbabilityMap

# Before simplification. The largest map has 2^20 pixels, and a detailed outline on it 100,000 vertices.
MAX_OUTLINE_VERTICES = 250_000
# Exteriors and holes, after specks are dropped.
MAX_OUTLINE_RINGS = 5_000
# Least distance of a probability from the threshold, for tracing: keeps vertices apart when rounded to float32.
SMALLEST_DISTANCE = 2.0**-8


def outline(
    probabilities: ProbabilityMap,
    threshold: float,
    image_width: int,
    image_height: int,
    keep: NDArray[np.float64],
    field: str = "prompt.output.threshold",
) -> shapely.MultiPolygon:
    """Trace where the probability passes the threshold, by marching squares with linear interpolation.

    probabilities: of a region of the image; the outline is cut at the image's edges, and at the region's.
    threshold: 0..1; a pixel is inside when its probability is above.
    keep: points [N, 2] (x, y, image pixels) whose part or hole is kept however small.
    field: of the request, for the error.
    Returns parts with holes, largest first, in image pixels (corners at integers), coordinates rounded to float32 (as
    they travel). A pixel centre of the map is inside exactly when its probability is above the threshold, and exteriors
    run clockwise on a screen.

    Raises:
        TooLargeError: more than MAX_OUTLINE_VERTICES vertices are left without specks, or more than MAX_OUTLINE_RINGS
            rings.
    """
    rows, columns = probabilities.region.inside(image_width, image_height)
    values = probabilities.values[rows, columns]
    mask = values > threshold
    window = _tight_window(mask)
    if (
        window is not None
        and _count_crossings(mask[window[0] : window[1], window[2] : window[3]]) > MAX_OUTLINE_VERTICES
    ):
        values = without_specks(values, mask, probabilities.region.to_input(keep) - (columns.start, rows.start))
        mask = values > threshold
        window = _tight_window(mask)
        count = _count_crossings(mask)
        if count > MAX_OUTLINE_VERTICES:
            raise TooLargeError(
                field, f"the outline has about {count} vertices, and the limit is {MAX_OUTLINE_VERTICES}"
            )
    if window is None:
        return shapely.MultiPolygon()
    y0, y1, x0, x1 = window
    # Padded by one pixel, so that the line closes around the object. At the map's edges values are repeated: the line
    # reaches the edge, and is cut there.
    pad = [(int(y0 == 0), int(y1 == values.shape[0])), (int(x0 == 0), int(x1 == values.shape[1]))]
    inner = values[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
    grid = np.pad(inner, pad, mode="edge")
    # A line through a pixel's very centre may touch itself there, so the value is moved by an invisible amount.
    near = np.abs(grid - threshold) < SMALLEST_DISTANCE
    grid[near] = threshold + np.where(grid[near] > threshold, SMALLEST_DISTANCE, -SMALLEST_DISTANCE)
    origin = np.array([columns.start + x0 - 1, rows.start + y0 - 1], np.float64)

    low, high = _bounds(probabilities, image_width, image_height)
    points, ring_bounds, part_bounds = _filled(grid, threshold)
    placed = np.clip(probabilities.region.from_input(points + origin), low, high).astype(np.float32)
    return _Traced(placed, ring_bounds, part_bounds).polygons(keep, field)


def count_crossings(probabilities: ProbabilityMap, threshold: float, image_width: int, image_height: int) -> int:
    """Count the grid edges that the outline would cross: its vertices before specks are dropped and lines simplified.

    An upper bound, and exact where the object does not reach the map's edges. Takes a few milliseconds at most.
    """
    return _count_crossings(probabilities.values[probabilities.region.inside(image_width, image_height)] > threshold)


def _count_crossings(mask: NDArray[np.bool_]) -> int:
    """Count the changes along rows and columns; at the map's edges lines follow each pixel, and meet changes twice.

    mask: bool [h, w].
    """
    count = _count_changes(mask) + _count_changes(mask.T)
    for side in (mask[:1], mask[-1:], mask[:, :1].T, mask[:, -1:].T):
        count += _count_changes(side.T) + int(np.count_nonzero(side)) + 2
    return count


def _count_changes(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask[1:] != mask[:-1]))


def _filled(
    values: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Trace the area above the threshold; points, ring_bounds and part_bounds as in `_Traced`, in pixels of the grid.

    Uses the generator of `contourpy.contour_generator` without its check for NaN, which takes longer than the contours.
    """
    x, y = np.empty(values.shape), np.empty(values.shape)
    x[:], y[:] = np.arange(values.shape[1]), np.arange(values.shape[0])[:, None]
    generator = contourpy.SerialContourGenerator(
        *(x, y, values.astype(np.float64)),
        None,  # type: ignore[arg-type]  # no mask, as contourpy itself says it
        corner_mask=False,
        line_type=contourpy.LineType.Separate,
        fill_type=contourpy.FillType.ChunkCombinedOffsetOffset,
        quad_as_tri=False,
        z_interp=contourpy.ZInterp.Linear,
    )
    points, ring_bounds, part_bounds = (np.asarray(chunks[0]) for chunks in generator.filled(threshold, np.inf))
    return points, ring_bounds.astype(np.int64), part_bounds.astype(np.int64)


def _tight_window(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the first and past-the-last row, then column, that hold a true value; None if there are none."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _bounds(
    probabilities: ProbabilityMap, image_width: int, image_height: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    region = probabilities.region
    low = (max(0.0, region.left), max(0.0, region.top))
    high = (min(image_width, region.left + region.width), min(image_height, region.top + region.height))
    return low, high


@dataclass(frozen=True, slots=True)
class _Traced:
    """All rings of an outline, one after another, as plain arrays.

    points: float32 [N, 2] (x, y, image pixels); every ring's first vertex is repeated at its end.
    ring_bounds: where each ring begins in `points`, and the end of the last, int64 [R + 1].
    part_bounds: where each part begins among the rings, and the end of the last, int64 [P + 1]; exteriors come first.
    """

    points: NDArray[np.float32]
    ring_bounds: NDArray[np.int64]
    part_bounds: NDArray[np.int64]

    def polygons(self, keep: NDArray[np.float64], field: str) -> shapely.MultiPolygon:
        """Drop tiny parts and fill tiny holes; sort by area, largest first."""
        areas = self._areas()
        exteriors = self.part_bounds[:-1]
        part_areas = 2 * areas[exteriors] - np.add.reduceat(areas, exteriors)
        sizes = areas.copy()
        sizes[exteriors] = part_areas
        smallest = SPECK_SHARE * part_areas.max()
        is_wanted = sizes >= smallest
        is_wanted |= self._holding(np.flatnonzero(~is_wanted), keep)
        is_wanted &= sizes > 0
        order = np.argsort(-part_areas, kind="stable")
        order = order[is_wanted[exteriors[order]]]
        bounds = zip(self.part_bounds[order].tolist(), self.part_bounds[order + 1].tolist(), strict=True)
        chosen = [np.flatnonzero(is_wanted[begin:end]) + begin for begin, end in bounds]
        count = sum(map(len, chosen))
        if count > MAX_OUTLINE_RINGS:
            raise TooLargeError(
                field, f"the outline has {count} rings (parts and holes), and the limit is {MAX_OUTLINE_RINGS}"
            )
        if not chosen:
            return shapely.MultiPolygon()
        kept = np.concatenate(chosen)
        lengths = np.diff(self.ring_bounds)[kept]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        points = self.points[np.repeat(self.ring_bounds[kept], lengths) + within]
        part_of = np.repeat(np.arange(len(chosen)), [len(part) for part in chosen])
        return assemble(points, np.repeat(np.arange(count), lengths), part_of)

    def _areas(self) -> NDArray[np.float64]:
        """Compute the area of each ring, in square pixels, float64 [R]."""
        begins, lengths = self.ring_bounds[:-1], np.diff(self.ring_bounds)
        # From each ring's own first vertex, so that digits are not lost far from the image's corner.
        moved = self.points.astype(np.float64)
        moved -= np.repeat(moved[begins], lengths, axis=0)
        x, y = moved.T
        products = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0.0)  # between two rings: the second factor is its zero
        areas: NDArray[np.float64] = np.abs(np.add.reduceat(products, begins)) / 2
        return areas

    def _holding(self, candidates: NDArray[np.int64], keep: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Find rings, bool [R], with a point of `keep` inside or on their line; candidates: indices to check."""
        result = np.zeros(len(self.ring_bounds) - 1, np.bool_)
        if len(candidates) == 0:
            return result
        begins = self.ring_bounds[:-1]
        low = np.minimum.reduceat(self.points, begins)[candidates]
        high = np.maximum.reduceat(self.points, begins)[candidates]
        for point in keep:
            for ring in candidates[((low <= point) & (point <= high)).all(axis=1)].tolist():
                if not result[ring]:
                    points = self.points[self.ring_bounds[ring] : self.ring_bounds[ring + 1]]
                    result[ring] = shapely.intersects_xy(shapely.Polygon(points), *point)
        return result
