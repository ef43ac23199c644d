"""Polygons and run lengths to masks, and masks to run lengths."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from polywand.results import Polygon

# Of a run length with its sign; no image has longer runs. A number that went on and on would take ever longer to read.
_RUN_BITS = 64


def rasterise(polygons: Iterable[Polygon], width: int, height: int) -> NDArray[np.bool_]:
    """The pixels that polygons cover, as bool [height, width], by the contract's rule.

    A pixel belongs to the shape when its centre (column + 0.5, row + 0.5) lies inside by the even-odd rule over all
    rings; a centre exactly on an edge belongs to what is below that edge, on a vertical one to what is on its right.
    Parts outside are cut off.
    """
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes) if len(ring)]
    flips = np.zeros((height + 1, width), np.uint8)  # the last row takes what lies below the image
    columns, rows = crossings(rings, width, height)
    np.bitwise_xor.at(flips, (rows, columns), 1)
    return np.bitwise_xor.accumulate(flips[:height], axis=0).view(np.bool_)


def crossings(
    rings: Sequence[NDArray[np.float32 | np.float64]], width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the columns of pixel centres meet the edges of rings [N, 2]: int64 [K] each.

    Returns the column, 0..width - 1, and the first row whose centre is not above the edge, cut to 0..height. From there
    down, inside turns to outside and back: this is the contract's rule, and all of it.
    """
    if not rings:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.concatenate(rings).astype(np.float64)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).astype(np.float64)
    # Every edge runs to the right, so that both neighbours of a shared edge compute the very same crossings.
    backwards = starts[:, 0] > ends[:, 0]
    starts[backwards], ends[backwards] = ends[backwards], starts[backwards]

    # Half-open in x: an edge meets the centres in [x0, x1), so a vertex counts once and vertical edges never.
    first = np.clip(np.ceil(starts[:, 0] - 0.5), 0, width).astype(np.int64)
    last = np.clip(np.ceil(ends[:, 0] - 0.5), 0, width).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    columns = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]

    (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
    along = columns + 0.5 - x0
    rows = np.ceil(y0 + along * (y1 - y0) / (x1 - x0) - 0.5) - 1
    # The quotient is rounded, so its row may be off by one where a centre lies on the edge; the product decides.
    for _ in range(2):
        rows += (rows + 0.5 - y0) * (x1 - x0) < along * (y1 - y0)
    return columns, np.clip(rows, 0, height).astype(np.int64)


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
        if group & 0x20 and shift < _RUN_BITS:
            continue
        if group & 0x10:
            value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift or sum(runs) != width * height or min(runs, default=0) < 0:
        raise ValueError(f"these run lengths are not those of a mask of {width} x {height} pixels")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def encode_rle(mask: NDArray[np.bool_ | np.uint8]) -> str:
    """A mask [height, width] (nonzero is inside) as COCO's compressed run lengths; `decode_rle` gives it back."""
    height, width = mask.shape
    inside = mask.astype(np.bool_, copy=False)
    # Where a run starts, looked for row by row as memory lies, and only then put into the order of columns.
    starts_here = np.empty((height, width), np.bool_)
    np.not_equal(inside[1:], inside[:-1], out=starts_here[1:])
    np.not_equal(inside[0, 1:], inside[-1, :-1], out=starts_here[0, 1:])
    starts_here[0, 0] = inside[0, 0]
    rows, columns = np.divmod(np.flatnonzero(starts_here), width)
    return _compressed(np.diff(np.sort(columns * height + rows), prepend=0, append=height * width))


def _compressed(runs: NDArray[np.int64]) -> str:
    """Run lengths in the format that `decode_rle` tells of."""
    values = runs.copy()
    values[3:] -= runs[1:-2]
    groups = []  # the first, second... characters of all values; 0 where a value has ended before
    unfinished = np.ones(len(values), np.bool_)
    while unfinished.any():
        group = values & 0x1F
        values >>= 5
        more = values != np.where(group & 0x10, -1, 0)
        groups.append(np.where(unfinished, group + 48 + 0x20 * more, 0))
        unfinished &= more
    characters: bytes = np.stack(groups, axis=1).astype(np.uint8).tobytes()
    return characters.replace(b"\0", b"").decode("ascii")
