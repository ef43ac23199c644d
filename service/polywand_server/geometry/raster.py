"""Rasterising: polygons to COCO run lengths, straight from the crossings, without a full-size mask."""

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from polywand_server.geometry.rings import rings, vertices


def to_rle(polygons: shapely.MultiPolygon, width: int, height: int) -> str:
    """Rasterise polygons (image pixels, corners at integers) into COCO's compressed counts (column-major).

    A pixel is set when its centre lies inside by the even-odd rule; a centre exactly on an edge belongs to what is
    below that edge, on a vertical one to what is on its right.
    """
    toggles = np.concatenate([np.empty(0), *(_toggles(vertices(ring), width, height) for ring in rings(polygons))])
    # Two crossings in front of the same pixel undo each other.
    places, times = np.unique(toggles, return_counts=True)
    places = places[times % 2 == 1].astype(np.int64)
    counts = np.diff(np.concatenate([[0], places, [width * height]]))
    encoded = coco.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)
    text: str = encoded["counts"].decode("ascii")
    return text


def _toggles(ring: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """Where the ring's edges cross the columns' centre lines: the first pixel below, as column * height + row."""
    begin, end = ring, np.roll(ring, -1, axis=0)
    swap = begin[:, 0] > end[:, 0]
    left, right = np.where(swap[:, None], end, begin), np.where(swap[:, None], begin, end)
    # An edge crosses the centre lines in [left, right): each vertex counts for one of its two edges.
    first = np.clip(np.ceil(left[:, 0] - 0.5), 0, width).astype(np.int64)
    last = np.clip(np.ceil(right[:, 0] - 0.5), 0, width).astype(np.int64)
    spans = last - first
    edge = np.repeat(np.arange(len(spans)), spans)
    column = np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans) + first[edge]
    width_of_edge, height_of_edge = right[edge, 0] - left[edge, 0], right[edge, 1] - left[edge, 1]
    along = column + 0.5 - left[edge, 0]
    row = np.ceil(left[edge, 1] + along * height_of_edge / width_of_edge - 0.5) - 1
    # The quotient is rounded, so its row may be one off where the edge meets a centre; the products decide.
    for _ in range(2):
        row += (row + 0.5 - left[edge, 1]) * width_of_edge < along * height_of_edge
    return np.asarray(column * height + np.clip(row, 0, height))
