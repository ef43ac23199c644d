"""Non-maximum suppression: keeps the best of the boxes that show the same object."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.tools.specs import Suppression


@dataclass(frozen=True, slots=True)
class Candidates:
    """Scored boxes: boxes float [N, 4] (x0, y0, x1, y1), scores float [N], classes int [N]."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.intp]

    def take(self, rows: NDArray[np.intp]) -> "Candidates":
        """Keep these rows, in this order."""
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows])


# The best boxes that enter the suppression, whose cost grows with their square.
MAX_CANDIDATES = 1000


def above(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], thresholds: NDArray[np.float32] | float
) -> Candidates:
    """List the (box, class) pairs that reach the threshold of their class, at most MAX_CANDIDATES.

    boxes: [M, 4]. scores: [M, C]. thresholds: [C], or one for all.
    """
    rows, classes = np.nonzero(scores >= thresholds)
    found = Candidates(boxes[rows], scores[rows, classes], classes)
    if len(found.scores) <= MAX_CANDIDATES:
        return found
    return found.take(np.argpartition(-found.scores, MAX_CANDIDATES)[:MAX_CANDIDATES])


def suppress(candidates: Candidates, how: Suppression) -> Candidates:
    """Suppress within each class, then across classes; returns the survivors by descending score."""
    if not len(candidates.scores):
        return candidates
    corners = candidates.boxes
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
    scores = candidates.scores.astype(np.float32)
    kept = cv2.dnn.NMSBoxesBatched(sides, scores, candidates.classes.astype(np.int32), 0.0, how.same_class_iou)
    rows = np.asarray(kept, np.intp).reshape(-1)
    if how.any_class_iou < 1:
        rows = rows[
            np.asarray(cv2.dnn.NMSBoxes(sides[rows], scores[rows], 0.0, how.any_class_iou), np.intp).reshape(-1)
        ]
    return candidates.take(rows[np.argsort(-scores[rows], kind="stable")])
