"""Lines: the rings of an outline as closed lines, and which of their vertices a simplification keeps."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.geometry.rings import assemble

# Longer lines are simplified in pieces: Douglas and Peucker's algorithm may take the square of their vertices.
WHOLE_VERTICES = 3 * 2**10
PIECE_VERTICES = 2**10
# Segments whose neighbours are queried at once, and pairs beyond which all segments count as meeting.
CHUNK_SEGMENTS = 1024
MOST_PAIRS = 2**22


@dataclass(frozen=True, slots=True)
class Lines:
    """The rings of an outline as closed lines, one after another.

    points: float64 [N, 2] (x, y, image pixels); every line's first vertex is repeated at its end.
    bounds: where each line begins, and the end of the last, int64 [R + 1].
    part_of: the part that each line belongs to, int64 [R], ascending from 0; a part's first line is its exterior.
    is_ccw: which way each line turns, bool [R].

    A simplification returns the ascending indices of the kept points, int64 [K]; the first and last of every line stay.
    """

    points: NDArray[np.float64]
    bounds: NDArray[np.int64]
    part_of: NDArray[np.int64]
    is_ccw: NDArray[np.bool_]

    @classmethod
    def of(cls, polygons: shapely.MultiPolygon) -> "Lines":
        """Read the rings of polygons that are not empty."""
        rings, part_of = shapely.get_rings(shapely.get_parts(polygons), return_index=True)
        bounds = np.concatenate([[0], np.cumsum(shapely.get_num_coordinates(rings), dtype=np.int64)])
        return cls(shapely.get_coordinates(rings), bounds, part_of, shapely.is_ccw(rings))

    def simplified(self, tolerance: float) -> NDArray[np.int64]:
        """Simplify line by line, long ones in pieces; the results may cross."""
        spans = np.diff(self.bounds) - 1
        pieces = np.where(spans > WHOLE_VERTICES, -(-spans // PIECE_VERTICES), 1)
        if (pieces == 1).all():
            return self.simplified_between(self.bounds[:-1], self.bounds[1:] - 1, tolerance)
        line = np.repeat(np.arange(len(spans)), pieces)
        number = np.arange(len(line)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begins = self.bounds[line] + number * spans[line] // pieces[line]
        ends = self.bounds[line] + (number + 1) * spans[line] // pieces[line]
        return self.simplified_between(begins, ends, tolerance)

    def simplified_between(
        self, begins: NDArray[np.int64], ends: NDArray[np.int64], tolerance: float | NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Simplify pieces between two points, by index, int64 [L] each; both points stay.

        tolerance: image pixels, one for all or float64 [L].
        """
        lengths = ends - begins + 1
        index = np.arange(lengths.sum()) + np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
        # GEOS carries a third coordinate along: the index.
        placed = np.column_stack([self.points[index], index])
        pieces = shapely.linestrings(placed, indices=np.repeat(np.arange(len(lengths)), lengths))
        simple = shapely.simplify(pieces, tolerance, preserve_topology=False)
        kept = shapely.get_coordinates(simple, include_z=True)[:, 2].astype(np.int64)
        result: NDArray[np.int64] = np.unique(np.concatenate([kept, begins, ends]))
        return result

    def simplified_together(self, tolerance: float) -> shapely.MultiPolygon | None:
        """Simplify all lines so that none crosses another; None where that fails."""
        lines = shapely.linestrings(self.points, indices=self._line_of(np.arange(len(self.points))))
        simple = shapely.get_parts(shapely.multilinestrings(lines).simplify(tolerance, preserve_topology=True))
        points, line_of = shapely.get_coordinates(simple, return_index=True)
        return self._polygons(points, line_of) if len(simple) == len(lines) else None

    def assembled(self, kept: NDArray[np.int64]) -> shapely.MultiPolygon | None:
        """Make polygons of the kept points; None if they are not valid."""
        return self._polygons(self.points[kept], self._line_of(kept))

    def meeting(self, kept: NDArray[np.int64], queried: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Find the segments between kept points, bool [K - 1], that skip points and meet other segments.

        queried: which segments are compared with all others, bool [K - 1]. All segments of a collapsed line count,
        and those from one line to the next never do.
        """
        line = self._line_of(kept)
        is_segment = line[1:] == line[:-1]
        is_shortcut = is_segment & (np.diff(kept) > 1)
        wrong: NDArray[np.bool_] = is_shortcut & (np.bincount(line)[line[:-1]] < 4)
        segments = shapely.linestrings(np.stack([self.points[kept[:-1]], self.points[kept[1:]]], axis=1))
        segments[~is_segment] = None
        tree = shapely.STRtree(segments)
        first = np.searchsorted(kept, self.bounds[:-1])[line[:-1]]
        last = np.searchsorted(kept, self.bounds[1:] - 1)[line[:-1]] - 1
        places = np.flatnonzero(queried & is_shortcut & ~wrong)
        pairs = 0
        for begin in range(0, len(places), CHUNK_SEGMENTS):
            chunk = places[begin : begin + CHUNK_SEGMENTS]
            one, other = tree.query(segments[chunk], predicate="intersects")
            one = chunk[one]
            is_next = (np.abs(one - other) <= 1) & (line[one] == line[other])
            is_next |= (first[one] == first[other]) & (np.abs(one - other) == last[one] - first[one])
            wrong[one[~is_next]] = True
            wrong[other[~is_next]] = True
            pairs += len(one)
            if pairs > MOST_PAIRS:
                wrong[:] = True
                break
        wrong &= is_shortcut
        return wrong

    def jumping(self, kept: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Find the segments that may have jumped over a whole line, bool [K - 1], where no two segments meet.

        The box of the points that they skip holds another line's first point; if there are none, all that skip points.
        """
        line = self._line_of(kept)
        is_shortcut = (line[1:] == line[:-1]) & (np.diff(kept) > 1)
        low = np.minimum.reduceat(self.points, kept)[:-1]
        high = np.maximum.reduceat(self.points, kept)[:-1]
        ends = self.points[kept[1:]]
        (x0, y0), (x1, y1) = np.minimum(low, ends).T, np.maximum(high, ends).T
        boxes = shapely.box(x0, y0, x1, y1)
        boxes[~is_shortcut] = None
        starts = shapely.points(self.points[self.bounds[:-1]])
        lines, segments = shapely.STRtree(boxes).query(starts)
        wrong = np.zeros(len(is_shortcut), np.bool_)
        wrong[segments[lines != line[segments]]] = True
        return wrong if wrong.any() else is_shortcut

    def _polygons(self, points: NDArray[np.float64], line_of: NDArray[np.int64]) -> shapely.MultiPolygon | None:
        if (np.bincount(line_of, minlength=len(self.part_of)) < 4).any():
            return None
        points = self._turned_as_before(points, line_of)
        polygons = assemble(points, line_of, self.part_of)
        return polygons if polygons.is_valid else None

    def _turned_as_before(self, points: NDArray[np.float64], line_of: NDArray[np.int64]) -> NDArray[np.float64]:
        """Restore the direction of rings; a thin one may turn the other way when vertices are removed."""
        after = shapely.linearrings(points, indices=line_of)
        has_turned = self.is_ccw != shapely.is_ccw(after)
        if not has_turned.any():
            return points
        after[has_turned] = shapely.reverse(after[has_turned])
        return np.asarray(shapely.get_coordinates(after))

    def _line_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.bounds, index, side="right") - 1
