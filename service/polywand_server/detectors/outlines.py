"""Outlines of detections: one shape for each box."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polywand_server.detectors.permits import FramePermit
from polywand_server.detectors.toolbox import Outliner
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.drawn import Drawn
from polywand_server.images import Picture
from polywand_server.interactors.batches import segment_boxes
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Outlines:
    """The shapes of one image's detections, in their order, and the interactor that made them."""

    shapes: Sequence[Drawn]
    model: str
    version: int
    threshold: float


class OutlineMaker:
    """Outlines boxes. lane: of frames."""

    def __init__(self, lane: Lane, drawer: Drawer) -> None:
        self._lane = lane
        self._drawer = drawer

    async def outline(
        self, outliner: Outliner, picture: Picture, boxes: Sequence[Box], timer: Stopwatch, permit: FramePermit
    ) -> Outlines:
        """Outline the object in each box; if the interactor finds nothing, the shape has no polygons.

        permit: of the frame, which yields to others between two batches.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        tool, threshold = outliner.tool, outliner.threshold
        size, no_clicks = (picture.width, picture.height), np.zeros((0, 2))

        async def draw(estimate: Estimate) -> Drawn:
            return await self._drawer.shape(
                estimate.probabilities, threshold, outliner.output, size, no_clicks, outliner.threshold_field
            )

        async def yield_to_others() -> None:
            await permit.yield_to_others(picture.nbytes, timer)

        shapes = await segment_boxes(self._lane, tool, picture, boxes, timer, draw, yield_to_others)
        return Outlines(shapes, tool.name, tool.version, threshold)
