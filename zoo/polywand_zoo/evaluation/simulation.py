"""The simulated annotator: where the next click goes, the box, the extreme points, and how good a mask is.

Coordinates of points and boxes are the contract's: image pixels with corners at integers, so a click into the middle of
the pixel in column c and row r is (c + 0.5, r + 0.5).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand import Box, Point
from polywand_zoo.evaluation.objects import Mask, Truth

Depth = NDArray[np.float32]


def iou(mask: Mask, truth: Truth) -> float:
    """Intersection over union of a mask and the truth, bool [H, W]; ignored pixels do not count."""
    counted = truth.inside | mask if truth.ignored is None else (truth.inside | mask) & ~truth.ignored
    union = np.count_nonzero(counted)
    return np.count_nonzero(mask & truth.inside & counted) / union if union else 1.0


def next_click(mask: Mask, truth: Truth, clicks: tuple[Point, ...]) -> Point | None:
    """Choose the click that corrects a mask best; None when there is nothing left to correct.

    It falls on the deepest pixel of the larger of two regions: what the mask lacks, and what it has too much; larger is
    the one whose deepest pixel is farther from its edge. The image's border is an edge as well, and a pixel is clicked
    once at most. This is the protocol of f-BRS and RITM.
    """
    lacking, wrong = truth.inside & ~mask, mask & ~truth.inside
    if truth.ignored is not None:
        lacking, wrong = lacking & ~truth.ignored, wrong & ~truth.ignored
    depths = [_depth(region) for region in (lacking, wrong)]
    for click in clicks:
        for depth in depths:
            depth[pixel(click)] = 0
    lacks, has_more = depths
    if max(lacks.max(), has_more.max()) == 0:
        return None
    return _deepest(lacks, "positive") if lacks.max() > has_more.max() else _deepest(has_more, "negative")


def tight_box(truth: Truth) -> Box:
    """The box whose edges are the outer edges of the object's outermost pixels."""
    rows, columns = np.flatnonzero(truth.inside.any(axis=1)), np.flatnonzero(truth.inside.any(axis=0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def extreme_points(truth: Truth) -> tuple[Point, ...]:
    """The centres of the left-, top-, right- and bottom-most pixels; of several, the one in the middle."""
    box = tight_box(truth)
    left, top, right, bottom = int(box.x0), int(box.y0), int(box.x1) - 1, int(box.y1) - 1
    pixels = (
        (left, _middle(truth.inside[:, left])),
        (_middle(truth.inside[top]), top),
        (right, _middle(truth.inside[:, right])),
        (_middle(truth.inside[bottom]), bottom),
    )
    return tuple(Point(x + 0.5, y + 0.5, "extreme") for x, y in pixels)


def inside_point(truth: Truth) -> Point:
    """The centre of the object's deepest pixel."""
    return _deepest(_depth(truth.inside), "positive")


def obeys(mask: Mask, clicks: tuple[Point, ...]) -> bool:
    """Whether every positive click lies inside a mask, and every negative one outside; extreme points do not count."""
    return all(mask[pixel(click)] == (click.label == "positive") for click in clicks if click.label != "extreme")


def pixel(point: Point) -> tuple[int, int]:
    """Row and column of the pixel that a point lies in."""
    return int(point.y), int(point.x)


def _depth(region: Mask) -> Depth:
    """How far each pixel's centre is from the closest pixel that is not of the region, float32 [H, W]."""
    framed = cv2.copyMakeBorder(region.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth: Depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return depth.copy()


def _deepest(depth: Depth, label: str) -> Point:
    row, column = divmod(int(depth.argmax()), depth.shape[1])
    return Point(column + 0.5, row + 0.5, "positive" if label == "positive" else "negative")


def _middle(line: Mask) -> int:
    """The middle one of the pixels of a line that are inside."""
    candidates = np.flatnonzero(line)
    return int(candidates[len(candidates) // 2])
