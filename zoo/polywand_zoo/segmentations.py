"""COCO's segmentations: polygons, run lengths, or compressed run lengths."""

from typing import Any

from pycocotools import mask as coco


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return compressed run lengths of a photo's size from whichever of COCO's three forms.

    Raises whatever pycocotools does about a segmentation that is none of them.
    """
    if isinstance(segmentation, list):
        segmentation = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco.frPyObjects(segmentation, height, width)
    compressed: dict[str, Any] = segmentation
    return compressed
