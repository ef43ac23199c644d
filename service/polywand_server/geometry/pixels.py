"""Outlines of masks along the edges of their pixels: they cover the same pixels, and keep the smallest parts."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.errors import TooLargeError
from polywand_server.geometry.outlines import MAX_OUTLINE_RINGS, MAX_OUTLINE_VERTICES
from polywand_server.geometry.rings import assemble

# Cut along both edges at a corner where pixels touch diagonally: rings must join with some width.
DIAGONAL_CUT = 1 / 16
# Cut at both corners of a step by one pixel: half of each edge, so that slanted lines are smooth.
STEP_CUT = 1 / 2


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The pixels of a mask, cut into columns: column, first row and the one past the last, int64 [K] each.

    Sorted by column and row; no two of a column touch.
    """

    columns: NDArray[np.int64]
    tops: NDArray[np.int64]
    bottoms: NDArray[np.int64]

    @property
    def area(self) -> int:
        """The number of pixels."""
        return int((self.bottoms - self.tops).sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs) and all(
            np.array_equal(mine, its)
            for mine, its in (
                (self.columns, other.columns),
                (self.tops, other.tops),
                (self.bottoms, other.bottoms),
            )
        )

    __hash__ = None  # type: ignore[assignment]


def united(columns: NDArray[np.int64], tops: NDArray[np.int64], bottoms: NDArray[np.int64]) -> Runs:
    """Sort runs of columns, int64 [K] each, and join those that overlap or touch; drop empty ones."""
    is_run = tops < bottoms
    columns, tops, bottoms = columns[is_run], tops[is_run], bottoms[is_run]
    if not len(columns):
        return Runs(columns, tops, bottoms)
    lowest = int(tops.min())
    span = int(bottoms.max()) - lowest + 1  # one row more, so that columns stay apart
    begins = np.sort(columns * span + tops - lowest)
    order = np.argsort(columns * span + tops - lowest, kind="stable")
    ends = np.maximum.accumulate((columns * span + bottoms - lowest)[order])
    is_first = np.append(True, begins[1:] > ends[:-1])
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(begins)) - 1
    column, top = np.divmod(begins[first], span)
    return Runs(column, top + lowest, ends[last] - column * span + lowest)


def pixel_outline(runs: Runs, field: str) -> shapely.MultiPolygon:
    """Trace a mask along its pixels' edges.

    Pixels that touch at a corner belong together. A step by one pixel becomes a slope between the middles
    of the edges beside it; all other corners stay. Time and memory grow with the runs, not with the image.

    field: of the request, for the error.
    Returns parts with holes, largest first, in image pixels (corners at integers); rasterised by the contract's rule
    they are the mask again. Exteriors run clockwise on a screen.

    Raises:
        TooLargeError: more than MAX_OUTLINE_VERTICES vertices or MAX_OUTLINE_RINGS rings.
    """
    if not len(runs.columns):
        return shapely.MultiPolygon()
    corners = _Corners.of(runs)
    _check(len(corners.x), MAX_OUTLINE_VERTICES, "vertices", field)
    order, bounds = corners.linked()
    _check(len(bounds) - 1, MAX_OUTLINE_RINGS, "rings (parts and holes)", field)
    starts = order[bounds[:-1]]
    is_exterior = corners.turn[starts] > 0
    parents = corners.parents(starts, is_exterior, _ring_of(order, bounds), runs)
    points, ring_of = _smooth_steps(corners, order, bounds)
    _check(len(points), MAX_OUTLINE_VERTICES, "vertices", field)
    return _assembled(points, ring_of, is_exterior, parents)


def _check(count: int, limit: int, what: str, field: str) -> None:
    if count > limit:
        raise TooLargeError(field, f"the outline has {count} {what}, and the limit is {limit}")


def _ring_of(order: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ring of each corner, int64 [N]."""
    rings = np.empty(len(order), np.int64)
    rings[order] = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    return rings


@dataclass(frozen=True, slots=True)
class _Corners:
    """Where the edges of a mask turn, by row and column, int64 [N] each.

    turn: 1 where inside begins right of the corner and below, or ends left of it; -1 the other way round; 2 and
    -2 where two pixels touch diagonally: such a corner stands twice, first the end of the edge on its left.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    turn: NDArray[np.int64]

    @classmethod
    def of(cls, runs: Runs) -> "_Corners":
        """Compare each column with the next."""
        width = int(runs.columns.max()) + 2
        steps = [(runs.columns, runs.tops, 1), (runs.columns, runs.bottoms, -1)]
        steps += [(runs.columns + 1, runs.tops, -1), (runs.columns + 1, runs.bottoms, 1)]
        keys = np.concatenate([rows * width + columns for columns, rows, _ in steps])
        order = np.argsort(keys, kind="stable")
        turns = np.repeat([turn for _, _, turn in steps], len(runs.columns))[order]
        keys = keys[order]
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        turn = np.add.reduceat(turns, first)
        rows, columns = np.divmod(keys[first], width)
        times = np.abs(turn)
        return cls(np.repeat(columns, times), np.repeat(rows, times), np.repeat(turn, times))

    def linked(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Follow the edges; return the corners, ring after ring, int64 [N], and the bounds of rings, int64 [R + 1].

        Every ring begins in its topmost corner, the leftmost of these; exteriors run to the right from there, holes
        down.
        """
        count = len(self.x)
        across = np.arange(count) ^ 1  # by row and column, corners are the ends of horizontal edges in turns
        is_second = np.zeros(count, np.bool_)
        is_second[1:] = (self.x[1:] == self.x[:-1]) & (self.y[1:] == self.y[:-1])
        # Where two pixels touch diagonally, each line turns around one of the pixels outside.
        by_column = np.lexsort((is_second ^ (self.turn == 2), self.y, self.x))
        along = np.empty(count, np.int64)
        along[by_column] = by_column[np.arange(count) ^ 1]
        steps = [across.tolist(), along.tolist()]
        is_hole = (self.turn < 0).tolist()
        is_done = bytearray(count)
        order: list[int] = []
        bounds = [0]
        for start in range(count):
            if is_done[start]:
                continue
            first, second = steps[::-1] if is_hole[start] else steps
            corner = start
            while not is_done[corner]:
                other = first[corner]
                is_done[corner] = is_done[other] = 1
                order += (corner, other)
                corner = second[other]
            bounds.append(len(order))
        return np.array(order, np.int64), np.array(bounds, np.int64)

    def parents(
        self, starts: NDArray[np.int64], is_exterior: NDArray[np.bool_], ring_of: NDArray[np.int64], runs: Runs
    ) -> NDArray[np.int64]:
        """Return the exterior of each ring's part, int64 [R]: itself, or for a hole that of the run above it.

        starts: the first corner of each ring.
        """
        parents = np.arange(len(starts))
        holes = np.flatnonzero(~is_exterior)
        if not len(holes):
            return parents
        x, y = self.x[starts[holes]], self.y[starts[holes]]
        span, width = int(runs.bottoms.max()) + 1, int(self.x.max()) + 1
        above = np.searchsorted(runs.columns * span + runs.bottoms, x * span + y)
        edges = self.y[::2] * width + self.x[::2]
        edge = np.searchsorted(edges, runs.tops[above] * width + x, side="right") - 1
        parents[holes] = ring_of[2 * edge]
        while True:  # each iteration doubles the distance to the ancestor
            further = parents[parents]
            if np.array_equal(further, parents):
                return parents
            parents = further


def _smooth_steps(
    corners: _Corners, order: NDArray[np.int64], bounds: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rings' vertices, float64 [N, 2], and the ring of each, int64 [N]."""
    points = np.stack([corners.x[order], corners.y[order]], axis=1).astype(np.float64)
    ring_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    before, after = _neighbours(ring_of)
    edges = points[after] - points
    lengths = np.abs(edges).sum(axis=1)
    direction = edges / lengths[:, np.newaxis]
    turns = _cross(direction[before], direction)
    is_step = (lengths == 1) & (turns * turns[after] < 0)
    cut = np.where(np.abs(corners.turn[order]) == 2, DIAGONAL_CUT, 0.0)
    cut[is_step | is_step[before]] = STEP_CUT
    both = np.stack([points - cut[:, np.newaxis] * direction[before], points + cut[:, np.newaxis] * direction], axis=1)
    points, ring_of = both.reshape(-1, 2), np.repeat(ring_of, 2)
    before, _ = _neighbours(ring_of)
    is_new = (points != points[before]).any(axis=1)
    points, ring_of = points[is_new], ring_of[is_new]
    before, after = _neighbours(ring_of)
    bends = _cross(points - points[before], points[after] - points) != 0
    return points[bends], ring_of[bends]


def _neighbours(ring_of: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the vertices before and after each; ring_of: ascending."""
    index = np.arange(len(ring_of))
    first = np.flatnonzero(np.append(True, ring_of[1:] != ring_of[:-1]))
    last = np.append(first[1:], len(ring_of)) - 1
    before, after = index - 1, index + 1
    before[first], after[last] = last, first
    return before, after


def _cross(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return result


def _assembled(
    points: NDArray[np.float64],
    ring_of: NDArray[np.int64],
    is_exterior: NDArray[np.bool_],
    parents: NDArray[np.int64],
) -> shapely.MultiPolygon:
    _, after = _neighbours(ring_of)
    areas = np.bincount(ring_of, _cross(points, points[after])) / 2  # holes run the other way, and count as negative
    part_areas = np.bincount(parents, areas, minlength=len(areas))
    # The largest part first, and in it the exterior before its holes, from the top.
    ring_order = np.lexsort((np.arange(len(areas)), ~is_exterior, parents, -part_areas[parents]))
    counts = np.bincount(ring_of)
    begins = np.cumsum(counts) - counts
    lengths = counts[ring_order] + 1  # each ring's first vertex again at its end
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    within %= np.repeat(counts[ring_order], lengths)
    index = np.repeat(begins[ring_order], lengths) + within
    part_of = np.cumsum(is_exterior[ring_order]) - 1
    return assemble(points[index], np.repeat(np.arange(len(lengths)), lengths), part_of)
