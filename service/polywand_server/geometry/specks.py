"""Specks: parts and holes of a map that are too small to matter, found before their outlines are traced."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Parts and holes below this share of the largest part's area are specks, unless a point of the prompt lies in them.
SPECK_SHARE = 0.005


def without_specks(
    values: NDArray[np.float32], mask: NDArray[np.bool_], keep: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Drop tiny parts and fill tiny holes on pixels; the time grows with the pixels, not with the specks.

    values, mask: float32 and bool [h, w], the probabilities and where they are above the threshold.
    keep: points [N, 2] (x, y, pixel centres at integers) whose part or hole is kept however small.
    Returns the probabilities with 0 at dropped parts and 1 at filled holes. Pixels that touch at a corner count as one
    piece, so that no piece is dropped that an outline might join to a larger one.
    """
    result = values.copy()
    inside = mask.astype(np.uint8)
    whole_sides = cv2.connectedComponentsWithStats(inside, connectivity=4)[2]
    smallest = SPECK_SHARE * whole_sides[1:, cv2.CC_STAT_AREA].max(initial=0)

    labels, statistics = _pieces(inside)
    is_speck = statistics[:, cv2.CC_STAT_AREA] < smallest
    specks = _marked(is_speck, labels, keep)
    result[specks] = 0
    inside[specks] = 0

    labels, statistics = _pieces((inside == 0).view(np.uint8))
    left, top = statistics[:, cv2.CC_STAT_LEFT], statistics[:, cv2.CC_STAT_TOP]
    width, height = statistics[:, cv2.CC_STAT_WIDTH], statistics[:, cv2.CC_STAT_HEIGHT]
    # By the area of its box: a narrow ditch counts with the area that it surrounds. Holes do not reach the map's edge.
    is_hole = (left > 0) & (top > 0) & (left + width < inside.shape[1]) & (top + height < inside.shape[0])
    result[_marked(is_hole & (width * height < smallest), labels, keep)] = 1
    return result


def _pieces(inside: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    return labels, statistics


def _marked(is_speck: NDArray[np.bool_], labels: NDArray[np.int32], keep: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the pixels of all specks without a point of `keep`; is_speck: of each label; label 0 is the background."""
    is_speck[0] = False
    height, width = labels.shape
    corner = np.floor(keep).astype(np.int64)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):  # an outline runs between pixels, so all four around a point count
        x, y = (corner + step).T
        is_near = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        is_speck[labels[y[is_near], x[is_near]]] = False
    marked: NDArray[np.bool_] = is_speck[labels]
    return marked
