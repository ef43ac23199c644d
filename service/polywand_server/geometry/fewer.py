"""Vertex budgets that no tolerance meets: drops the smallest rings, then vertices of the largest."""

import heapq

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.polygon import orient

from polywand_server.geometry.rings import assemble, count_vertices, vertices

# Vertices are removed one by one from rings of at most this many; from longer rings, many at a time.
HEAP_VERTICES = 2**13


def with_fewer_vertices(
    polygons: shapely.MultiPolygon, max_points: int, tolerance: float
) -> tuple[shapely.MultiPolygon, float]:
    """Drop the smallest rings until a budget holds; the largest part stays, as a triangle if need be.

    Holes are dropped with their part. Returns the polygons and the applied tolerance, image pixels: the given one, or
    more if vertices of the largest part were removed.
    """
    if count_vertices(polygons) <= max_points:
        return polygons, tolerance
    rings, part_of = shapely.get_rings(shapely.get_parts(polygons), return_index=True)
    order = np.argsort(-shapely.area(shapely.polygons(rings)), kind="stable")
    counts = shapely.get_num_coordinates(rings) - 1
    if counts[order[0]] > max_points:
        ring, deviation = _fewer_vertices(vertices(rings[order[0]]), max_points)
        return shapely.MultiPolygon([orient(shapely.Polygon(ring))]), max(tolerance, deviation)
    is_exterior = np.diff(part_of, prepend=-1) > 0
    left = max_points
    parts: dict[int, list[int]] = {}
    for ring in order.tolist():
        part = int(part_of[ring])
        if counts[ring] <= left and (is_exterior[ring] or part in parts):
            parts.setdefault(part, []).append(ring)
            left -= counts[ring]
    chosen = [rings[part] for part in parts.values()]
    points, ring_of = shapely.get_coordinates(np.concatenate(chosen), return_index=True)
    return assemble(points, ring_of, np.repeat(np.arange(len(chosen)), [len(part) for part in chosen])), tolerance


def _fewer_vertices(ring: NDArray[np.float64], max_points: int) -> tuple[NDArray[np.float64], float]:
    """Remove the vertices that change the area least until the budget holds (Visvalingam and Whyatt 1993).

    If the result crosses itself, return vertices of the convex hull instead, reduced to the budget.
    Returns the ring [N, 2] and its greatest distance from the given one.
    """
    kept = _reduced(ring, np.arange(len(ring)), max_points)
    if not shapely.Polygon(ring[kept]).is_valid:
        kept = _reduced(ring, _on_hull(ring), max_points)
    return ring[kept], _deviation(ring, kept)


def _reduced(ring: NDArray[np.float64], kept: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    while len(kept) > max(count, HEAP_VERTICES):
        areas = _triangles(ring[kept])
        # Never two neighbours, and at most the smaller half: areas change as vertices are removed.
        goes = (areas < np.roll(areas, 1)) & (areas <= np.roll(areas, -1)) & (areas <= np.median(areas))
        spare = len(kept) - max(count, HEAP_VERTICES)
        chosen = np.flatnonzero(goes) if goes.any() else np.arange(0, len(kept) - 1, 2)
        chosen = chosen[np.argsort(areas[chosen], kind="stable")[:spare]]
        kept = np.delete(kept, chosen)
    return kept[_reduced_one_by_one(ring[kept], count)] if len(kept) > count else kept


def _triangles(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the area between each vertex and its neighbours, which its removal changes, float64 [N]."""
    (ax, ay), (bx, by) = (ring - np.roll(ring, 1, axis=0)).T, (np.roll(ring, -1, axis=0) - ring).T
    areas: NDArray[np.float64] = np.abs(ax * by - ay * bx)
    return areas


def _reduced_one_by_one(ring: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the indices that remain, int64 [count]."""
    points: list[tuple[float, float]] = [(x, y) for x, y in ring.tolist()]
    before = [(index - 1) % len(ring) for index in range(len(ring))]
    after = [(index + 1) % len(ring) for index in range(len(ring))]
    areas = _triangles(ring).tolist()
    heap = [(area, index) for index, area in enumerate(areas)]
    heapq.heapify(heap)
    is_left = np.ones(len(ring), np.bool_)
    left = len(ring)
    while left > count:
        area, index = heapq.heappop(heap)
        if not is_left[index] or area != areas[index]:
            continue  # it was removed, or its neighbours changed
        is_left[index] = False
        left -= 1
        one, other = before[index], after[index]
        after[one], before[other] = other, one
        for neighbour in (one, other):
            (x0, y0), (x, y), (x1, y1) = points[before[neighbour]], points[neighbour], points[after[neighbour]]
            areas[neighbour] = abs((x - x0) * (y1 - y) - (y - y0) * (x1 - x))
            heapq.heappush(heap, (areas[neighbour], neighbour))
    return np.flatnonzero(is_left)


def _on_hull(ring: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the vertices on the convex hull, ascending."""
    corners = shapely.get_coordinates(shapely.convex_hull(shapely.multipoints(ring)))[:-1]
    index = {(x, y): number for number, (x, y) in enumerate(ring.tolist())}
    return np.sort(np.array([index[x, y] for x, y in corners.tolist()], np.int64))


def _deviation(ring: NDArray[np.float64], kept: NDArray[np.int64]) -> float:
    """Return the greatest distance of a ring from the segments between the kept vertices."""
    segment = np.searchsorted(kept, np.arange(len(ring)), side="right") - 1  # -1 is the segment that closes the ring
    start, end = ring[kept[segment]], ring[np.roll(kept, -1)[segment]]
    along, out = end - start, ring - start
    length = np.maximum((along**2).sum(axis=1), np.finfo(np.float64).tiny)
    nearest = np.clip((along * out).sum(axis=1) / length, 0, 1)[:, np.newaxis] * along
    return float(np.sqrt(((out - nearest) ** 2).sum(axis=1)).max())
