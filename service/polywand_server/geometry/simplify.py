"""Simplification: fewer vertices within a tolerance or a budget, without ever crossing lines.

The time is almost linear in the vertices: long rings are simplified in pieces, and crossings of large outlines are
repaired locally.
"""

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.geometry.fewer import with_fewer_vertices
from polywand_server.geometry.lines import Lines
from polywand_server.geometry.rings import count_vertices

# First tolerance of the search for one that fits a budget, in image pixels, if none was requested.
SEARCH_FROM = 0.5
# Halvings of the search's interval (in the tolerance's logarithm); finer ones would not be visible.
SEARCH_STEPS = 8
# Most vertices of an outline in the search; larger outlines are made coarser first.
SEARCH_VERTICES = 2**14
# Most vertices of all outlines that are made coarser for it.
COARSER_VERTICES = 2**18
# Growth of the tolerance in each step, and after a step that removed less than a tenth of the vertices.
COARSER_FACTOR, IMPATIENT_FACTOR = 2, 8
# Halvings of a step that removed too many.
COARSER_STEPS = 3
# For larger outlines GEOS takes too long to keep the topology.
TOPOLOGY_VERTICES = 2**15
# Lines that cross are simplified again with this share of their tolerance; below the finest, with none.
REPAIR_SHARE = 1 / 4
REPAIR_FINEST = 0.25
REPAIRS = 40
# Most segments whose neighbours are queried for repairs.
REPAIR_SEGMENTS = 2**18


def simplify(
    polygons: shapely.MultiPolygon, tolerance: float, max_points: int | None
) -> tuple[shapely.MultiPolygon, float]:
    """Simplify by Douglas and Peucker's algorithm, keeping topology.

    tolerance: largest distance of the result from the given outline, image pixels; 0 keeps every vertex.
    max_points: vertices over all rings at most, at least 3; None is no limit. The tolerance grows, and then the
        smallest rings are dropped, until it holds.
    Returns the polygons and the applied tolerance, image pixels.
    """
    simple = polygons if tolerance <= 0 else _simplified(polygons, tolerance)
    if max_points is None or count_vertices(simple) <= max_points:
        return simple, tolerance
    # The search works on a first simplification, which has a tenth of the vertices; its tolerance adds to the result's.
    base = max(tolerance, SEARCH_FROM)
    if base > tolerance:
        simple = _simplified(polygons, base)
    simple, base = _coarser(simple, base, max(max_points, SEARCH_VERTICES))
    if count_vertices(simple) <= max_points:
        return simple, base
    if count_vertices(simple) > SEARCH_VERTICES:  # no tolerance is enough: combs in combs, thousands of rings
        return with_fewer_vertices(simple, max_points, base)
    return _searched(simple, base, max(2 * base, polygons.length), max_points)


def _coarser(simple: shapely.MultiPolygon, base: float, max_points: int) -> tuple[shapely.MultiPolygon, float]:
    """Simplify repeatedly until a large budget holds or the work limit is reached; base: tolerance applied so far."""
    finer, step, factor, work = simple, base, COARSER_FACTOR, 0
    count = count_vertices(simple)
    while count > max_points and work < COARSER_VERTICES and step < simple.length:
        work += count
        step *= factor
        finer, simple = simple, _simplified(simple, step)
        base += step
        before, count = count, count_vertices(simple)
        if count <= max_points / 2:  # too many removed in one step
            simple, less = _halved(finer, simple, step / factor, step, max_points, COARSER_STEPS)
            return simple, base - step + less
        factor = IMPATIENT_FACTOR if count > 0.9 * before else COARSER_FACTOR
    return simple, base


def _halved(
    finer: shapely.MultiPolygon, fitting: shapely.MultiPolygon, low: float, high: float, max_points: int, steps: int
) -> tuple[shapely.MultiPolygon, float]:
    """Search a smaller tolerance that fits a budget; return the outline and its tolerance."""
    for _ in range(steps):
        middle = math.sqrt(low * high)
        candidate = _simplified(finer, middle)
        if count_vertices(candidate) <= max_points:
            fitting, high = candidate, middle
        else:
            low = middle
    return fitting, high


def _searched(
    simple: shapely.MultiPolygon, base: float, high: float, max_points: int
) -> tuple[shapely.MultiPolygon, float]:
    """Find the smallest tolerance that fits a budget, between base and high; base: applied so far."""
    fitting = _simplified(simple, high)
    if count_vertices(fitting) > max_points:
        return with_fewer_vertices(fitting, max_points, base + high)
    fitting, step = _halved(simple, fitting, base, high, max_points, SEARCH_STEPS)
    return fitting, base + step


def _simplified(polygons: shapely.MultiPolygon, tolerance: float) -> shapely.MultiPolygon:
    """Simplify all rings as closed lines: as polygons, GEOS would also drop each ring's first vertex, and exceed the
    tolerance up to twice.

    First line by line, which is ten times as fast; if lines cross then, all together.
    """
    if polygons.is_empty:
        return polygons
    lines = Lines.of(polygons)
    kept = lines.simplified(tolerance)
    result = lines.assembled(kept)
    if result is not None:
        return result
    if len(lines.points) <= TOPOLOGY_VERTICES:
        return lines.simplified_together(tolerance) or polygons
    return _repaired(lines, kept, tolerance) or polygons


def _repaired(lines: Lines, kept: NDArray[np.int64], tolerance: float) -> shapely.MultiPolygon | None:
    """Simplify lines that meet others again, with less tolerance; None if that takes too long."""
    applied = np.full(len(lines.points), tolerance, np.float64)  # tolerance of the segment that covers each point
    is_new = np.ones(len(lines.points), np.bool_)
    work = 0
    for _ in range(REPAIRS):
        queried = (np.diff(kept) > 1) & is_new[kept[:-1]]
        work += int(np.count_nonzero(queried))
        if work > REPAIR_SEGMENTS:
            return None
        wrong = lines.meeting(kept, queried)
        if not wrong.any():
            wrong = lines.jumping(kept)
        is_new = np.append(np.repeat(wrong, np.diff(kept)), False)
        applied[is_new] *= REPAIR_SHARE
        applied[applied < REPAIR_FINEST] = 0
        begins, ends = kept[:-1][wrong], kept[1:][wrong]
        kept = np.union1d(kept, lines.simplified_between(begins, ends, applied[begins]))
        result = lines.assembled(kept)
        if result is not None:
            return result
    return None
