"""Overlap: how much of an outline its simplification kept."""

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand.raster import crossings
from polywand_server.geometry.rings import rings, vertices

# Longest side of the grid on which areas are counted: the areas are right to about a thousandth.
GRID = 256
FEW_PIXELS = GRID * GRID // 16


def intersection_over_union(first: shapely.MultiPolygon, second: shapely.MultiPolygon) -> float:
    """Compare two outlines by area, counted along the columns of a fine grid; 1 when both are empty."""
    if first.is_empty or second.is_empty:
        return float(first.is_empty and second.is_empty)
    low = np.minimum(first.bounds[:2], second.bounds[:2])
    scale = GRID / max(*(np.maximum(first.bounds[2:], second.bounds[2:]) - low), 1e-9)
    places = [_turns(polygons, low, scale) for polygons in (first, second)]
    # Along all columns, one behind the other, each outline turns from outside to inside and back at its places.
    merged = np.concatenate(places)
    order = np.argsort(merged, kind="stable")
    lengths = np.diff(merged[order])
    is_first = order < len(places[0])
    in_first, in_second = np.cumsum(is_first)[:-1] % 2 == 1, np.cumsum(~is_first)[:-1] % 2 == 1
    union = int(lengths[in_first | in_second].sum())
    if union < FEW_PIXELS:  # thin or tiny: the grid is too coarse, and the outlines are short
        shared = first.intersection(second).area
        return float(shared / (first.area + second.area - shared))
    return float(lengths[in_first & in_second].sum() / union)


def _turns(polygons: shapely.MultiPolygon, low: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    columns, rows = crossings([(vertices(ring) - low) * scale for ring in rings(polygons)], GRID, GRID)
    return columns * (GRID + 1) + rows
