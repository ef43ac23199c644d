"""Simplification: fewer vertices within a tolerance or a budget, without ever crossing lines."""

import math
from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.polygon import orient

from polywand_server.geometry.rings import count_vertices, rings, vertices

# Where the search for a tolerance that fits a budget begins, in image pixels, if none was asked for.
SEARCH_FROM = 0.5
# Halvings of the search's interval (in the tolerance's logarithm); finer would not be seen.
SEARCH_STEPS = 8


def simplify(
    polygons: shapely.MultiPolygon, tolerance: float, max_points: int | None
) -> tuple[shapely.MultiPolygon, float]:
    """Simplify by Douglas and Peucker's algorithm, keeping topology.

    tolerance: image pixels that the result may run from the given outline; 0 keeps every vertex.
    max_points: vertices over all rings at most, at least 3; None is no limit. Tolerance grows, and then the smallest
        rings go, until that holds.
    Returns the polygons and the tolerance that was applied.
    """
    simple = polygons if tolerance <= 0 else _simplified(polygons, tolerance)
    if max_points is None or count_vertices(simple) <= max_points:
        return simple, tolerance
    # The search works on a first simplification, which has a tenth of the vertices; its tolerance adds to the result's.
    base = max(tolerance, SEARCH_FROM)
    simple = _simplified(polygons, base)
    if count_vertices(simple) <= max_points:
        return simple, base
    low, high = base, max(2 * base, polygons.length)
    fitting = _simplified(simple, high)
    for _ in range(SEARCH_STEPS):
        middle = math.sqrt(low * high)
        candidate = _simplified(simple, middle)
        if count_vertices(candidate) <= max_points:
            fitting, high = candidate, middle
        else:
            low = middle
    return _drop_smallest_rings(fitting, max_points), base + high


def _simplified(polygons: shapely.MultiPolygon, tolerance: float) -> shapely.MultiPolygon:
    """Simplify all rings as closed lines: of polygons GEOS would also drop each ring's first vertex, and run up to
    twice the tolerance away.

    Line by line at first, which is ten times as quick; together, so that none crosses another, where that went wrong.
    """
    lines = shapely.MultiLineString([ring.coords for ring in rings(polygons)])
    turns = shapely.is_ccw(shapely.get_parts(lines))
    for keep_topology in (False, True):
        simple = shapely.get_parts(lines.simplify(tolerance, preserve_topology=keep_topology))
        if (shapely.get_num_coordinates(simple) > 3).all():
            # A thin ring that loses most of its vertices may come to turn the other way.
            simple = np.where(shapely.is_ccw(simple) == turns, simple, shapely.reverse(simple))
            result = _assembled(iter(simple), polygons)
            if result.is_valid:
                return result
    return polygons


def _assembled(lines: Iterator[shapely.LineString], like: shapely.MultiPolygon) -> shapely.MultiPolygon:
    parts = [[next(lines).coords for _ in (part.exterior, *part.interiors)] for part in like.geoms]
    return shapely.MultiPolygon([shapely.Polygon(part[0], part[1:]) for part in parts])


def _drop_smallest_rings(polygons: shapely.MultiPolygon, max_points: int) -> shapely.MultiPolygon:
    """Holes go with their part; the largest part stays, as a triangle if need be."""
    if count_vertices(polygons) <= max_points:
        return polygons
    by_area = [
        (shapely.Polygon(ring).area, part, place, ring)
        for part, polygon in enumerate(polygons.geoms)
        for place, ring in enumerate((polygon.exterior, *polygon.interiors))
    ]
    by_area.sort(key=lambda ring: -ring[0])
    left = max_points
    parts: dict[int, list[shapely.LinearRing]] = {}
    if len(by_area[0][3].coords) - 1 > max_points:
        return shapely.MultiPolygon([orient(shapely.Polygon(_fewer_vertices(by_area[0][3], max_points)))])
    for _, part, place, ring in by_area:
        count = len(ring.coords) - 1
        is_hole_of_dropped_part = place > 0 and part not in parts
        if count <= left and not is_hole_of_dropped_part:
            parts.setdefault(part, []).append(ring)
            left -= count
    return shapely.MultiPolygon([shapely.Polygon(part[0], part[1:]) for part in parts.values()])


def _fewer_vertices(ring: shapely.LinearRing, max_points: int) -> NDArray[np.float64]:
    """Take out the vertex that changes the area least until the budget holds (Visvalingam and Whyatt 1993)."""
    left = vertices(ring)
    while len(left) > max_points:
        (ax, ay), (bx, by) = (left - np.roll(left, 1, axis=0)).T, (np.roll(left, -1, axis=0) - left).T
        left = np.delete(left, np.argmin(np.abs(ax * by - ay * bx)), axis=0)
    return left
