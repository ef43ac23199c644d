"""Overlap: intersection over union of an outline and its simplification."""

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_contract.raster import crossings
from polywand_server.geometry.rings import count_vertices, rings, vertices

# Longest side of the grid on which areas are counted, with a relative error of about 1/1000.
GRID = 256
# The same for thin shapes with many vertices.
FINE_GRID = 4096
# A union that covers a smaller share of the grid is too thin for it.
LEAST_SHARE = 1 / 16
# Vertices of both outlines: up to this many, exact areas take milliseconds; for more, maybe seconds.
EXACT_VERTICES = 2000


def intersection_over_union(first: shapely.MultiPolygon, second: shapely.MultiPolygon) -> float:
    """Compare two outlines by area, counted along the columns of a fine grid; 1 when both are empty."""
    if first.is_empty or second.is_empty:
        return float(first.is_empty and second.is_empty)
    low = np.minimum(first.bounds[:2], second.bounds[:2])
    sides = np.maximum(np.maximum(first.bounds[2:], second.bounds[2:]) - low, 1e-9)
    shared, union = _counted(first, second, low, GRID / np.full(2, sides.max()), GRID)
    if union >= LEAST_SHARE * GRID**2:
        return shared / union
    if count_vertices(first) + count_vertices(second) > EXACT_VERTICES:
        # Each axis has its own scale, which changes both areas alike.
        shared, union = _counted(first, second, low, FINE_GRID / sides, FINE_GRID)
        return shared / max(union, 1)
    shared_area = first.intersection(second).area
    return float(shared_area / (first.area + second.area - shared_area))


def _counted(
    first: shapely.MultiPolygon,
    second: shapely.MultiPolygon,
    low: NDArray[np.float64],
    scale: NDArray[np.float64],
    grid: int,
) -> tuple[int, int]:
    """Count the pixels of intersection and union on a grid [grid, grid].

    low: its origin (x, y), image pixels. scale: its pixels per image pixel, (x, y).
    """
    keys = [_crossing_keys(polygons, low, scale, grid) for polygons in (first, second)]
    # Along all columns, one after another, each outline turns from outside to inside and back at its crossings.
    merged = np.concatenate(keys)
    order = np.argsort(merged, kind="stable")
    lengths = np.diff(merged[order])
    is_first = order < len(keys[0])
    in_first, in_second = np.cumsum(is_first)[:-1] % 2 == 1, np.cumsum(~is_first)[:-1] % 2 == 1
    return int(lengths[in_first & in_second].sum()), int(lengths[in_first | in_second].sum())


def _crossing_keys(
    polygons: shapely.MultiPolygon, low: NDArray[np.float64], scale: NDArray[np.float64], grid: int
) -> NDArray[np.int64]:
    columns, rows = crossings([(vertices(ring) - low) * scale for ring in rings(polygons)], grid, grid)
    return columns * (grid + 1) + rows
