"""Rings: what every other module of this room walks over."""

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
    return sum(len(ring.coords) - 1 for ring in rings(polygons))
