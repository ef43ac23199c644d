"""Specks: tiny parts and holes of a mask, which Polywand drops and fills unless a click lies in them."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_zoo.evaluation.windows import Belief, Points

SHARE = 0.005  # of the largest part's area
SAME_PART, SAME_HOLE = 4, 8  # neighbours of a pixel: where two pixels touch at a corner, the background runs through


class _Regions(NamedTuple):
    """labels: int32 [h, w], 0 where there is none; areas: pixels of each, by label."""

    labels: NDArray[np.int32]
    areas: NDArray[np.int32]


def without_specks(belief: Belief, threshold: float, width: int, height: int, clicks: Points) -> Belief:
    """The belief in which specks are on the other side of the threshold.

    width, height: of the image; what the window sees outside of it belongs to no part. clicks: [N, 2] (x, y, image).
    """
    window, probabilities = belief.window, belief.probabilities
    first, last = np.round(window.to_input(np.array([[0.5, 0.5], [width - 0.5, height - 0.5]]))).astype(int)
    seen = np.zeros(probabilities.shape, np.bool_)
    seen[max(first[1], 0) : last[1] + 1, max(first[0], 0) : last[0] + 1] = True
    inside = (probabilities > threshold) & seen
    parts, holes = _regions(inside, SAME_PART), _regions(~inside, SAME_HOLE)
    # What reaches the border is no hole.
    border = np.concatenate([holes.labels[[0, -1]].ravel(), holes.labels[:, [0, -1]].ravel()])
    smallest = SHARE * max(parts.areas[1:], default=0)
    x, y = np.round(window.to_input(clicks)).astype(int).T
    pointed = (x >= 0) & (y >= 0) & (x < seen.shape[1]) & (y < seen.shape[0])
    changed = np.zeros_like(inside)
    for found, spared in ((parts, ()), (holes, border)):
        tiny = found.areas < smallest
        tiny[[0, *spared, *found.labels[y[pointed], x[pointed]]]] = False
        changed |= tiny[found.labels]
    return Belief(window, np.where(changed, 2 * np.float32(threshold) - probabilities, probabilities))


def _regions(mask: NDArray[np.bool_], neighbours: int) -> _Regions:
    _, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=neighbours)
    return _Regions(labels, facts[:, cv2.CC_STAT_AREA])
