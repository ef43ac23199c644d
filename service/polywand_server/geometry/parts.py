"""Parts: the polygons of one object as drawn by people and tools, united; valid outlines stay as they are."""

from collections.abc import Iterable, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.polygon import orient

from polywand_contract.raster import edge_crossings
from polywand_server.geometry.pixels import Runs, united
from polywand_server.geometry.rings import rings, vertices

Ring = NDArray[np.float32 | np.float64]
Part = Sequence[Ring]

# Pairs of edges whose boxes overlap: this many per edge (three are itself and those that it joins), and this many more.
# If there are more, lines are not cut at their crossings.
MOST_NEIGHBOURS, MORE_NEIGHBOURS = 4, 2**10
# Edges whose neighbours are queried at once.
CHUNK_EDGES = 256
# Smallest piece, in square pixels; smaller ones lie between lines that almost meet, and would vanish by rounding.
SLIVER = 2.0**-10


def part_runs(parts: Sequence[Part], width: int, height: int) -> Runs:
    """Return the pixels of an image that any part covers, each by the contract's rule over its own rings.

    parts: rings [N, 2] (x, y) of each, exterior and holes.
    """
    flat = [ring for part in parts for ring in part]
    part_of = np.repeat(np.arange(len(parts)), [sum(map(len, part)) for part in parts])
    chunks = [(part_of[edge], columns, rows) for edge, columns, rows in edge_crossings(flat, width, height)]
    if not chunks:
        return united(*np.empty((3, 0), np.int64))
    part, columns, rows = (np.concatenate(values) for values in zip(*chunks, strict=True))
    order = np.lexsort((rows, columns, part))
    tops, bottoms = rows[order].reshape(-1, 2).T  # closed rings cross every column an even number of times
    return united(columns[order][::2], tops, bottoms)


def own_outline(parts: Sequence[Part], width: int, height: int) -> shapely.MultiPolygon | None:
    """Make one outline of all parts, cut at the image; vertices stay where lines neither cross nor leave the image.

    Returns parts with holes, largest first, exteriors clockwise on a screen, coordinates rounded to float32;
    None if it would not cover exactly the pixels of `part_runs`, or that would take long to find out.
    """
    drawn = [polygon for polygon in map(_polygon, parts) if polygon is not None]
    if not drawn:
        return shapely.MultiPolygon()
    together = shapely.MultiPolygon(drawn)
    image = shapely.box(0, 0, width, height)
    if shapely.covers(image, shapely.box(*together.bounds)) and together.is_valid:
        return largest_first(drawn)
    if _crosses_much(together):
        return None
    pieces = shapely.union_all([piece for polygon in drawn for piece in _pieces(polygon)])
    cut = shapely.intersection(pieces, image)
    polygons = [part for part in shapely.get_parts(cut) if part.geom_type == "Polygon" and part.area > SLIVER]
    rounded = [shapely.transform(part, lambda points: points.astype(np.float32)) for part in polygons]
    result = shapely.MultiPolygon(rounded)
    if not result.is_valid:
        return None
    made = part_runs([[vertices(ring) for ring in rings(part)] for part in rounded], width, height)
    return largest_first(rounded) if made == part_runs(parts, width, height) else None


def largest_first(polygons: Iterable[shapely.Polygon]) -> shapely.MultiPolygon:
    """Sort by area, exteriors clockwise on a screen; every ring keeps its first vertex."""
    return shapely.MultiPolygon([orient(polygon) for polygon in sorted(polygons, key=lambda part: -part.area)])


def _polygon(part: Part) -> shapely.Polygon | None:
    """Make a polygon of a part, without repeated vertices; None if its exterior has fewer than three."""
    exterior, *holes = (_without_repetition(ring.astype(np.float64)) for ring in part)
    return shapely.Polygon(exterior, [hole for hole in holes if len(hole) > 2]) if len(exterior) > 2 else None


def _pieces(polygon: shapely.Polygon) -> Iterable[shapely.Polygon]:
    """Cut a part along its lines into the pieces inside, by the contract's even-odd rule."""
    if polygon.is_valid:
        return [polygon]
    lines = shapely.node(shapely.union_all(rings(polygon)))
    faces = shapely.get_parts(shapely.polygonize([lines]))
    shapely.prepare(polygon)  # counts how often a ray from a point crosses the lines
    x, y = shapely.get_coordinates(shapely.point_on_surface(faces)).T
    chosen: NDArray[np.object_] = faces[shapely.contains_xy(polygon, x, y)]
    return chosen


def _without_repetition(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    kept: NDArray[np.float64] = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    return kept


def _crosses_much(polygons: shapely.MultiPolygon) -> bool:
    """Whether so many edges are near others that finding all crossings would take long."""
    lines = [shapely.get_coordinates(ring) for ring in rings(polygons)]
    edges = np.concatenate([np.stack([line[:-1], line[1:]], axis=1) for line in lines])
    segments = shapely.linestrings(edges)
    tree = shapely.STRtree(segments)
    limit, pairs = MOST_NEIGHBOURS * len(segments) + MORE_NEIGHBOURS, 0
    for begin in range(0, len(segments), CHUNK_EDGES):
        pairs += tree.query(segments[begin : begin + CHUNK_EDGES]).shape[1]
        if pairs > limit:
            return True
    return False
