"""Polygons and run lengths to masks."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from polywand.results import Polygon


def rasterise(polygons: Iterable[Polygon], width: int, height: int) -> NDArray[np.bool_]:
    """The pixels that polygons cover, as bool [height, width], by the contract's rule.

    A pixel belongs to the shape when its centre (column + 0.5, row + 0.5) lies inside by the even-odd rule over all
    rings; a centre exactly on an edge belongs to the shape on its right, or below it. Parts outside are cut off.
    """
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes) if len(ring)]
    flips = np.zeros((height, width + 1), np.uint8)  # the last column takes what lies right of the image
    if rings:
        rows, columns = _crossings(rings, height)
        np.bitwise_xor.at(flips, (rows, np.clip(columns, 0, width)), 1)
    return np.bitwise_xor.accumulate(flips[:, :width], axis=1).view(np.bool_)


def _crossings(rings: list[NDArray[np.float32]], height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where rows of pixel centres meet edges: row and first column whose centre is not left of the edge, int64 [K]."""
    starts = np.concatenate(rings).astype(np.float64)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).astype(np.float64)
    # Every edge runs down, so that both neighbours of a shared edge compute the very same crossings.
    upwards = starts[:, 1] > ends[:, 1]
    starts[upwards], ends[upwards] = ends[upwards], starts[upwards]

    # Half-open in y: an edge meets the centres in [y0, y1), so a vertex counts once and horizontal edges never.
    first = np.clip(np.ceil(starts[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(ends[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]

    (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
    below = rows + 0.5 - y0
    columns = np.ceil(x0 + below * (x1 - x0) / (y1 - y0) - 0.5) - 1
    # The quotient is rounded, so its column may be off by one where a centre lies on the edge; the product decides.
    for _ in range(2):
        columns += (columns + 0.5 - x0) * (y1 - y0) < below * (x1 - x0)
    return rows, columns.astype(np.int64)


def decode_rle(counts: str, width: int, height: int) -> NDArray[np.bool_]:
    """COCO's compressed run lengths (ASCII, column by column) as a mask, bool [height, width].

    The format is that of `rleFrString` in the COCO API's maskApi.c: little-endian groups of five bits, 48 added to
    each, bit 5 says that more follow, bit 4 of the last is the sign; from the fourth on, counts are differences to the
    last but one. Raises ValueError when the runs do not fill the image exactly.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode("ascii"):
        group = character - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift or sum(runs) != width * height or min(runs, default=0) < 0:
        raise ValueError(f"these run lengths are not those of a mask of {width} x {height} pixels")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(pixels.reshape(width, height).T)
