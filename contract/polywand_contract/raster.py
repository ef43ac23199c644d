"""Polygons and COCO run lengths to pixels by the contract's rule, for service and clients."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Most characters (of five bits) of a run length: enough for any image, and within 64 bits.
_RUN_CHARACTERS = 12
# Crossings computed at once, so that intermediate arrays stay in the processor's cache.
_CHUNK_CROSSINGS = 2**16
# Narrower masks are accumulated by NumPy column by column, wider ones row by row, whichever is faster.
_NARROW = 128


def fill_rings(rings: Sequence[NDArray[np.float32 | np.float64]], width: int, height: int) -> NDArray[np.uint8]:
    """Return the mask of rings [N, 2], uint8 [height, width] of 0 and 1, by the contract's rule.

    A pixel is in the mask if its centre (column + 0.5, row + 0.5) is inside by the even-odd rule over all rings; a
    centre exactly on an edge belongs to the area below the edge, or to the right of a vertical edge. Parts outside the
    image are ignored.
    """
    flips = np.zeros((height + 1, width), np.uint8)  # the last row receives crossings below the image
    flat = flips.reshape(-1)
    for _, columns, rows in edge_crossings(rings, width, height):
        np.bitwise_xor.at(flat, rows * width + columns, np.uint8(1))
    return _accumulate(flips[:height])


def _accumulate(flips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mask of the pixels with an odd number of flips in or above them, uint8 [height, width]; in place."""
    if flips.shape[1] < _NARROW:
        np.bitwise_xor.accumulate(flips, axis=0, out=flips)
        return flips
    for above, row in pairwise(flips):
        np.bitwise_xor(row, above, out=row)
    return flips


def crossings(
    rings: Sequence[NDArray[np.float32 | np.float64]], width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find where the columns of pixel centres cross the edges of rings [N, 2].

    Returns int64 [K] each: the column, 0..width - 1, and the first row whose centre is not above the edge, clipped to
    0..height. From that row down, inside and outside are swapped: this is the contract's whole rule.
    """
    nothing = np.empty(0, np.int64)
    chunks = [(nothing, nothing, nothing), *edge_crossings(rings, width, height)]
    _, columns, rows = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return columns, rows


def edge_crossings(
    rings: Sequence[NDArray[np.float32 | np.float64]], width: int, height: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield what `crossings` returns in chunks of about _CHUNK_CROSSINGS, to limit memory.

    Yields int64 [K] each: the edge's index as `edges` counts them, the column, the row.
    """
    starts, ends = edges(rings)
    if len(starts) == 0:
        return
    # All edges go to the right, so that both polygons at a shared edge get exactly the same crossings.
    backwards = starts[:, 0] > ends[:, 0]
    starts[backwards], ends[backwards] = ends[backwards], starts[backwards]

    # Half-open in x: an edge crosses the centres in [x0, x1), so a vertex counts once and vertical edges never.
    first = np.clip(np.ceil(starts[:, 0] - 0.5), 0, width).astype(np.int64)
    last = np.clip(np.ceil(ends[:, 0] - 0.5), 0, width).astype(np.int64)
    totals = np.cumsum(last - first)
    cuts = np.searchsorted(totals, np.arange(0, totals[-1], _CHUNK_CROSSINGS))
    for begin, end in pairwise([*cuts.tolist(), len(starts)]):
        chunk = slice(begin, end)
        edge, columns, rows = _edge_crossings(starts[chunk], ends[chunk], first[chunk], last[chunk], height)
        yield edge + begin, columns, rows


def edges(
    rings: Sequence[NDArray[np.float32 | np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where each edge of rings [N, 2] starts and ends, float64 [E, 2] each; the last vertex joins the first."""
    sizes = np.array([len(ring) for ring in rings if len(ring)], np.int64)
    if sizes.size == 0:
        return np.empty((0, 2)), np.empty((0, 2))
    starts = np.concatenate([ring for ring in rings if len(ring)]).astype(np.float64)
    ends = np.roll(starts, -1, axis=0)
    lasts = np.cumsum(sizes) - 1
    ends[lasts] = starts[lasts - sizes + 1]
    return starts, ends


def _edge_crossings(
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    height: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where edges from starts to ends [N, 2] cross the columns first..last - 1 [N]: edge, column and row."""
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    columns = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    (x0, y0), (x1, y1) = starts[edge].T, ends[edge].T
    along = columns + 0.5 - x0
    rows = np.ceil(y0 + along * (y1 - y0) / (x1 - x0) - 0.5) - 1
    # The quotient is rounded, so the row may be off by one where a centre is on the edge; the product is exact enough.
    for _ in range(2):
        rows += (rows + 0.5 - y0) * (x1 - x0) < along * (y1 - y0)
    return edge, columns, np.clip(rows, 0, height).astype(np.int64)


def decode_rle(counts: str, width: int, height: int) -> NDArray[np.bool_]:
    """Return the mask of COCO's compressed run lengths (ASCII, column by column), bool [height, width].

    Raises ValueError when the runs do not fill the image exactly.
    """
    columns, tops, bottoms = column_runs(run_lengths(counts, width, height), height)
    return draw_runs(columns, tops, bottoms, width, height).view(np.bool_)


def run_lengths(counts: str, width: int, height: int) -> NDArray[np.int64]:
    """Uncompress COCO's run lengths to int64 [K]: pixels outside and inside in turns, column by column.

    The format is that of `rleFrString` in the COCO API's maskApi.c: little-endian groups of five bits, each plus 48;
    bit 5 says that another group follows, bit 4 of the last is the sign; from the fourth count on, each is the
    difference to the count two before. Raises ValueError when the runs do not fill the image exactly. Memory depends on
    the runs, not on the image's size.
    """
    runs = _uncompress(np.frombuffer(counts.encode("ascii"), np.uint8), width * height)
    if runs is None:
        raise ValueError(f"these run lengths are not those of a mask of {width} x {height} pixels")
    return runs


def _uncompress(characters: NDArray[np.uint8], pixels: int) -> NDArray[np.int64] | None:
    """Return the runs, or None if they do not fill exactly this number of pixels."""
    groups = characters - np.uint8(48)
    ends = np.flatnonzero(groups & 0x20 == 0)
    if len(ends) == 0 or ends[-1] != len(groups) - 1:
        return np.empty(0, np.int64) if len(groups) == pixels == 0 else None
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _RUN_CHARACTERS or pixels > 2**60:
        return None
    begins = ends - lengths + 1
    shifts = 5 * (np.arange(len(groups)) - np.repeat(begins, lengths))
    values = np.add.reduceat((groups & 0x1F).astype(np.int64) << shifts, begins)
    values -= (groups[ends] & 0x10).astype(np.int64) // 0x10 << 5 * lengths
    # No value of valid data exceeds the image, so sums do not overflow; invalid data fails here, before any sum.
    if np.abs(values).max() > pixels:
        return None
    runs = values
    runs[1::2], runs[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    totals = np.cumsum(runs)
    is_right = runs.min() >= 0 and runs.max() <= pixels and totals.max() <= pixels and totals[-1] == pixels
    return runs if is_right else None


def column_runs(runs: NDArray[np.int64], height: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Split the inside runs at the ends of columns: column, first row and row after the last, int64 [K] each."""
    bounds = np.cumsum(runs)
    begins, ends = bounds[: len(runs) // 2 * 2 : 2], bounds[1::2]
    is_run = begins < ends
    begins, ends = begins[is_run], ends[is_run]
    first, last = begins // max(height, 1), (ends - 1) // max(height, 1)
    pieces = last - first + 1
    run = np.repeat(np.arange(len(begins)), pieces)
    columns = np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces - first, pieces)
    tops = np.maximum(begins[run] - columns * height, 0)
    bottoms = np.minimum(ends[run] - columns * height, height)
    return columns, tops, bottoms


def draw_runs(
    columns: NDArray[np.int64], tops: NDArray[np.int64], bottoms: NDArray[np.int64], width: int, height: int
) -> NDArray[np.uint8]:
    """Draw runs of columns, as `column_runs` makes them, into a mask of 0 and 1, uint8 [height, width]."""
    flips = np.zeros((height, width), np.uint8)
    flips[tops, columns] = 1
    within = bottoms < height
    flips[bottoms[within], columns[within]] ^= 1  # one run may begin where another ends
    return _accumulate(flips)


def encode_rle(mask: NDArray[np.bool_ | np.uint8]) -> str:
    """Return COCO's compressed run lengths of a mask [height, width], nonzero inside; `decode_rle` is the inverse."""
    height, width = mask.shape
    inside = mask.astype(np.bool_, copy=False)
    # Run starts are found row by row, in memory order, and then sorted by column.
    starts_here = np.empty((height, width), np.bool_)
    np.not_equal(inside[1:], inside[:-1], out=starts_here[1:])
    np.not_equal(inside[0, 1:], inside[-1, :-1], out=starts_here[0, 1:])
    starts_here[0, 0] = inside[0, 0]
    rows, columns = np.divmod(np.flatnonzero(starts_here), width)
    return _compress(np.diff(np.sort(columns * height + rows), prepend=0, append=height * width))


def _compress(runs: NDArray[np.int64]) -> str:
    """Return run lengths in the format that `run_lengths` describes."""
    values = runs.copy()
    values[3:] -= runs[1:-2]
    groups = []  # the first, second... characters of all values; 0 where a value has no more
    unfinished = np.ones(len(values), np.bool_)
    while unfinished.any():
        group = values & 0x1F
        values >>= 5
        more = values != np.where(group & 0x10, -1, 0)
        groups.append(np.where(unfinished, group + 48 + 0x20 * more, 0))
        unfinished &= more
    characters: bytes = np.stack(groups, axis=1).astype(np.uint8).tobytes()
    return characters.replace(b"\0", b"").decode("ascii")
