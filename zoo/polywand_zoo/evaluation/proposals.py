"""Proposals: the boxes that a detector finds on a photo, by its ONNX graph and the service's own code around it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polywand_server.detectors.detection import letterbox
from polywand_server.detectors.suppression import above, suppress
from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.images.regions import crop_into
from polywand_server.tools.specs import ProposalSpec
from polywand_zoo.evaluation.modelfolder import AbsentError, DetectorFolder, ModelError, ModelFolder, read_detector
from polywand_zoo.evaluation.networks import Network, Precision, load_network


@dataclass(frozen=True, slots=True)
class Proposal:
    """A box inside the image, and its score."""

    box: Box
    score: float


class Proposer:
    """A detector's graph on the processor; it remembers the proposals of the last picture.

    score: of the boxes that count, at least.
    """

    def __init__(self, detector: DetectorFolder, network: Network, score: float) -> None:
        self._detector = detector
        self._network = network
        self._score = score
        self._last: tuple[Picture, Sequence[Proposal]] | None = None

    def propose(self, picture: Picture) -> Sequence[Proposal]:
        """List the proposals of a picture, by descending score."""
        if self._last is None or self._last[0] is not picture:
            self._last = picture, self._find(picture)
        return self._last[1]

    def _find(self, picture: Picture) -> Sequence[Proposal]:
        height, width = self._detector.size
        region = letterbox(picture.width, picture.height, self._detector.size)
        image = np.empty((1, height, width, 3), np.uint8)
        crop_into(image[0], picture, region)
        boxes, scores = self._network.outputs({"IMAGE": image}, ["BOXES", "SCORES"])
        found = suppress(above(boxes[0], scores[0], self._score), self._detector.spec.suppression)
        # The network's boxes are measured from its input's corner; regions count from the first pixel's centre.
        corners = region.from_input(found.boxes.reshape(-1, 2).astype(np.float64) - 0.5)
        edges = corners.clip(0, (picture.width, picture.height)).reshape(-1, 4).tolist()
        return [
            Proposal(Box(x0, y0, x1, y1), float(score))
            for (x0, y0, x1, y1), score in zip(edges, found.scores, strict=True)
            if x0 < x1 and y0 < y1
        ]


def load_proposer(
    folder: ModelFolder, proposals: ProposalSpec | None, precision: Precision, threads: int
) -> Proposer | None:
    """Load the detector that a model's crop policy names; None where it names none, or one that does not exist.

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
