"""Rings: helpers for the rings of polygons, for all modules of this package."""

import numpy as np
import shapely
from numpy.typing import NDArray


def rings(polygons: shapely.Geometry) -> list[shapely.LinearRing]:
    """Return all rings of a Polygon or MultiPolygon: per part the exterior, then its holes."""
    return list(shapely.get_rings(shapely.get_parts(polygons)))


def vertices(ring: shapely.LinearRing) -> NDArray[np.float64]:
    """Return the ring's vertices [N, 2] (x, y) without the repetition of the first one at the end."""
    return np.asarray(shapely.get_coordinates(ring)[:-1])


def count_vertices(polygons: shapely.Geometry) -> int:
    """Count the vertices over all rings; the repetition of a ring's first vertex at its end does not count."""
    parts = shapely.get_parts(polygons)
    return int(shapely.get_num_coordinates(parts).sum() - (1 + shapely.get_num_interior_rings(parts)).sum())


def assemble(
    points: NDArray[np.float64 | np.float32], ring_of: NDArray[np.int64], part_of: NDArray[np.int64]
) -> shapely.MultiPolygon:
    """Make polygons of closed rings, given one after another.

    points: [N, 2] (x, y), every ring's first vertex repeated at its end.
    ring_of: the ring of each point, int [N], ascending from 0.
    part_of: the part of each ring, int [R], ascending from 0; a part's first ring is its exterior.
    """
    if len(points) == 0:
        return shapely.MultiPolygon()
    closed = shapely.linearrings(np.asarray(points, np.float64), indices=ring_of)
    return shapely.MultiPolygon(shapely.polygons(closed, indices=part_of).tolist())
