"""Rasterising: polygons to COCO run lengths, straight from the crossings, without a full-size mask."""

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco

from polywand_contract.raster import crossings
from polywand_server.geometry.rings import rings, vertices


def to_rle(polygons: shapely.MultiPolygon, width: int, height: int) -> str:
    """Rasterise polygons (image pixels, corners at integers) into COCO's compressed counts (column-major).

    A pixel is set when its centre lies inside by the even-odd rule; a centre exactly on an edge belongs to
    the area below that edge, on a vertical edge to the area on its right.
    """
    columns, rows = crossings([vertices(ring) for ring in rings(polygons)], width, height)
    return encode_flips(columns * height + rows, width, height)


def encode_flips(positions: NDArray[np.int64], width: int, height: int) -> str:
    """Return the compressed counts of a mask by the pixels from which on inside and outside are swapped.

    positions: int64 [K], pixels counted column by column, in any order; two at the same pixel cancel each other.
    """
    positions, times = np.unique(positions, return_counts=True)
    counts = np.diff(np.concatenate([[0], positions[times % 2 == 1], [width * height]]))
    encoded = coco.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)
    text: str = encoded["counts"].decode("ascii")
    return text
