"""Proposals: where a detector sees something on a photo, with a letterbox and suppression of our own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand import Box
from polywand_zoo.evaluation.crops import Proposals
from polywand_zoo.evaluation.modelfolder import AbsentError, DetectorFolder, ModelError, ModelFolder, read_detector
from polywand_zoo.evaluation.networks import Network, Precision, load_network
from polywand_zoo.evaluation.objects import Photo
from polywand_zoo.evaluation.windows import Window, around, cut

# Only the best of the boxes enter the suppression, as in the service.
MOST_CANDIDATES = 1000


@dataclass(frozen=True, slots=True)
class Proposal:
    """A box in image pixels (corners at integers), inside of the image, and how sure the detector is of it."""

    box: Box
    score: float


class Proposer:
    """A detector's graph on the processor; it remembers what it saw on the last photo. score: of its boxes at least."""

    def __init__(self, detector: DetectorFolder, network: Network, score: float) -> None:
        self._detector, self._network, self._score = detector, network, score
        self._last: tuple[Photo, Sequence[Proposal]] | None = None

    def look_at(self, photo: Photo) -> Sequence[Proposal]:
        """What it sees on a photo, the surest first."""
        if self._last is None or self._last[0] is not photo:
            self._last = photo, self._find(photo)
        return self._last[1]

    def _find(self, photo: Photo) -> Sequence[Proposal]:
        window = letterbox(photo.width, photo.height, self._detector.size)
        boxes, scores = self._network.outputs({"IMAGE": cut(photo.pixels, window)[None]}, ["BOXES", "SCORES"])
        rows, classes = np.nonzero(scores[0] >= self._score)
        found, sure = boxes[0][rows].astype(np.float64), scores[0][rows, classes]
        best = _suppressed(found, sure, classes, self._detector)
        # The network's boxes are measured from its input's corner, and windows count from the first pixel's centre.
        corners = window.to_image(found[best].reshape(-1, 2) - 0.5).clip(0, (photo.width, photo.height))
        edges = corners.reshape(-1, 4).tolist()
        return [
            Proposal(Box(x0, y0, x1, y1), float(score))
            for (x0, y0, x1, y1), score in zip(edges, sure[best], strict=True)
            if x0 < x1 and y0 < y1
        ]


def load_proposer(
    folder: ModelFolder, proposals: Proposals | None, precision: Precision, threads: int
) -> Proposer | None:
    """Load the detector that a model's crop policy asks; None where it asks nobody, or one that is not there.

    threads: 0 is all cores.

    Raises:
        ModelError: it is no detector, or the runtime refuses it.
    """
    if proposals is None:
        return None
    try:
        detector = read_detector(folder.repository, proposals.model)
    except AbsentError:
        return None
    network = load_network(detector, precision, threads)
    if network.inputs != {"IMAGE"}:
        raise ModelError(f"{detector.network} has other inputs than IMAGE")
    return Proposer(detector, network, proposals.score)


def letterbox(width: int, height: int, size: tuple[int, int]) -> Window:
    """The smallest window of the aspect of size (height, width) that holds an image, which lies in its middle."""
    x = (max(width, height * size[1] / size[0]) - width) / 2
    y = (max(height, width * size[0] / size[1]) - height) / 2
    # Its edges lie on whole pixels of the half, the quarter ... that is resized: a stretch of one changes the scores.
    step = 2 ** int(math.log2(max(1.0, (width + 2 * x) / size[1])))
    window = around(-x / step, -y / step, (width + x) / step, (height + y) / step, size, max(size))
    return Window(window.left * step, window.top * step, window.right * step, window.bottom * step, size)


def _suppressed(
    boxes: NDArray[np.float64], scores: NDArray[np.float32], classes: NDArray[np.intp], how: DetectorFolder
) -> NDArray[np.intp]:
    """The rows of the boxes [N, 4] (x0, y0, x1, y1) that are left within each class, then of all; the surest first."""
    if not len(scores):
        return np.zeros(0, np.intp)
    sides = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    kept = cv2.dnn.NMSBoxesBatched(
        *(sides, scores, classes.astype(np.int32)), 0.0, how.same_class_iou, top_k=MOST_CANDIDATES
    )
    rows = np.array(kept, np.intp).reshape(-1)
    if how.any_class_iou < 1:
        rows = rows[np.array(cv2.dnn.NMSBoxes(sides[rows], scores[rows], 0.0, how.any_class_iou), np.intp).reshape(-1)]
    return rows[np.argsort(-scores[rows], kind="stable")]
