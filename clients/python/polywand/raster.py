"""Polygons and COCO run lengths to masks, and masks to run lengths."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from polywand.results import Polygon
from polywand_contract.raster import decode_rle, encode_rle, fill_rings

__all__ = ["decode_rle", "encode_rle", "rasterise"]


def rasterise(polygons: Iterable[Polygon], width: int, height: int) -> NDArray[np.bool_]:
    """Return the mask of polygons, bool [height, width], by the contract's rule.

    A pixel is in the mask if its centre (column + 0.5, row + 0.5) is inside by the even-odd rule over all rings; a
    centre exactly on an edge belongs to the area below the edge, or to the right of a vertical edge. Parts outside the
    image are ignored.
    """
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    return fill_rings(rings, width, height).view(np.bool_)
