"""COCO's segmentations: polygons, run lengths, or compressed run lengths; checked before pycocotools' C gets them."""

from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as coco

from polywand_contract import raster

# Of a photo whose mask is decoded; the reader of photos has the same limit.
MAX_PIXELS = 2**28
# Coordinates so many times the photo's longer side away are an error of the file.
FAR = 16
# Of one polygon, in pixels along its edges, for each of which pycocotools needs some hundred bytes.
MAX_LENGTH = 2**22


class SegmentationError(ValueError):
    """A segmentation that says nothing; the text says what is wrong with it."""


def run_lengths(segmentation: Any, height: Any, width: Any) -> dict[str, Any]:
    """Return compressed run lengths of a photo's size from whichever of COCO's three forms; parts are united.

    Raises:
        SegmentationError: it is none of them, or of another size.
    """
    if height is None or width is None:
        raise SegmentationError("its image has no height or no width")
    if not (_is_count(height) and _is_count(width) and 0 < height * width <= MAX_PIXELS):
        raise SegmentationError(f"{width} x {height} is no size of a photo")
    if isinstance(segmentation, dict):
        return _runs(segmentation, int(height), int(width))
    if not isinstance(segmentation, list) or not segmentation:
        raise SegmentationError("it holds neither polygons nor run lengths")
    # A single polygon without the list around it is what some tools write.
    parts = segmentation if isinstance(segmentation[0], list | dict) else [segmentation]
    united: dict[str, Any] = coco.merge([_part(part, int(height), int(width)) for part in parts])
    return united


def _part(part: Any, height: int, width: int) -> dict[str, Any]:
    if isinstance(part, dict):
        return _runs(part, height, width)
    try:
        numbers = np.array(part)
    except ValueError:  # lists in it, of several lengths
        numbers = np.array(None)
    if numbers.ndim != 1 or (len(part) and (numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all())):
        raise SegmentationError("a coordinate is no number")
    if len(part) % 2:
        raise SegmentationError("a polygon has an odd number of coordinates")
    if len(part) < 6:
        raise SegmentationError("a polygon has fewer than three points")
    points = numbers.astype(np.float64).reshape(-1, 2)
    if np.abs(points).max() > FAR * max(height, width):
        raise SegmentationError(f"a coordinate is far outside the photo of {width} x {height} pixels")
    if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > MAX_LENGTH:
        raise SegmentationError(f"a polygon runs to and fro over more than {MAX_LENGTH} pixels")
    drawn: dict[str, Any] = coco.frPyObjects([part], height, width)[0]
    return drawn


def _runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size", [height, width]), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_count, size)):
        raise SegmentationError("the size of its run lengths is not [height, width]")
    if size != [height, width]:
        raise SegmentationError(
            f"its run lengths are of {size[1]} x {size[0]} pixels, and the photo of {width} x {height}"
        )
    if isinstance(counts, str) and counts.isascii():
        try:
            raster.run_lengths(counts, width, height)
        except ValueError as error:
            raise SegmentationError(str(error)) from error
        return {"size": size, "counts": counts}
    if not isinstance(counts, list) or not all(_is_count(run) and run <= height * width for run in counts):
        raise SegmentationError("its counts are neither run lengths nor compressed ones")
    if sum(counts) != height * width:
        raise SegmentationError(f"its run lengths are of {sum(counts)} pixels, and the photo of {width} x {height}")
    runs = {"size": size, "counts": [int(run) for run in counts]}
    compressed: dict[str, Any] = coco.frPyObjects(runs, height, width)
    return compressed


def _is_count(value: Any) -> TypeGuard[int]:
    if isinstance(value, float):
        return value >= 0 and value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
