"""Masks: the pixels of an image that a probability map finds, without specks.

The service draws polygons of the same map by other code; that both agree is what `--way both` checks.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.images.regions import ProbabilityMap
from polywand_zoo.evaluation.objects import Mask

SHARE = 0.005  # a speck is smaller than this share of the largest part's area
SAME_PART, SAME_HOLE = 4, 8  # neighbours of a pixel: two pixels that touch at a corner are two parts, and one hole


def to_mask(found: ProbabilityMap, threshold: float, width: int, height: int) -> Mask:
    """Find the image's pixels at whose centres the probability is above the threshold, bool [height, width]."""
    region, mask = found.region, np.zeros((height, width), np.bool_)
    x0, y0 = min(max(region.left, 0), width), min(max(region.top, 0), height)
    x1, y1 = max(x0, min(region.left + region.width, width)), max(y0, min(region.top + region.height, height))
    if x0 == x1 or y0 == y1:
        return mask
    first, second = region.to_input(np.array([[x0 + 0.5, y0 + 0.5], [x0 + 1.5, y0 + 1.5]]))
    step = second - first
    mask[y0:y1, x0:x1] = threshold < cv2.warpAffine(
        found.values,
        np.array([[step[0], 0, first[0]], [0, step[1], first[1]]]),
        (x1 - x0, y1 - y0),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,  # between the outermost centres and the edge, the map continues as it is there
    )
    return mask


def without_specks(
    found: ProbabilityMap, threshold: float, width: int, height: int, clicks: NDArray[np.float64]
) -> ProbabilityMap:
    """Move tiny parts and holes to the other side of the threshold, unless a click lies in them.

    width, height: of the image; what the region sees outside of it belongs to no part. clicks: [N, 2] (x, y, image).
    """
    region, probabilities = found.region, found.values
    first, last = np.round(region.to_input(np.array([[0.5, 0.5], [width - 0.5, height - 0.5]]))).astype(int)
    seen = np.zeros(probabilities.shape, np.bool_)
    seen[max(first[1], 0) : last[1] + 1, max(first[0], 0) : last[0] + 1] = True
    inside = (probabilities > threshold) & seen
    parts, holes = _pieces(inside, SAME_PART), _pieces(~inside, SAME_HOLE)
    # What reaches the border is no hole.
    border = np.concatenate([holes.labels[[0, -1]].ravel(), holes.labels[:, [0, -1]].ravel()])
    smallest = SHARE * max(parts.areas[1:], default=0)
    x, y = np.round(region.to_input(clicks)).astype(int).T
    in_map = (x >= 0) & (y >= 0) & (x < seen.shape[1]) & (y < seen.shape[0])
    changed = np.zeros_like(inside)
    for pieces, kept in ((parts, ()), (holes, border)):
        is_tiny = pieces.areas < smallest
        is_tiny[[0, *kept, *pieces.labels[y[in_map], x[in_map]]]] = False
        changed |= is_tiny[pieces.labels]
    return ProbabilityMap(region, np.where(changed, 2 * np.float32(threshold) - probabilities, probabilities))


class _Pieces(NamedTuple):
    """labels: int32 [h, w], 0 where there is no piece; areas: pixels of each, by label."""

    labels: NDArray[np.int32]
    areas: NDArray[np.int32]


def _pieces(mask: Mask, neighbours: int) -> _Pieces:
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=neighbours)
    return _Pieces(labels, statistics[:, cv2.CC_STAT_AREA])
