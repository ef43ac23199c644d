"""Outlines of detections: one shape for each box."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from polywand_server.admission.permits import FramePermit
from polywand_server.detectors.toolbox import Outliner
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.drawn import Drawn
from polywand_server.images import Picture
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.prompt import Prompt, Supersession
from polywand_server.interactors.steps import Call, Steps
from polywand_server.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Outlines:
    """The shapes of one image's detections, in their order, and the interactor that made them."""

    shapes: Sequence[Drawn]
    model: str
    version: int
    threshold: float

    def moved(self, move: Callable[[Drawn], Drawn]) -> "Outlines":
        """Return them with every shape moved."""
        return replace(self, shapes=[move(shape) for shape in self.shapes])


class OutlineMaker:
    """Outlines boxes. new_steps: makes the steps on an image. drawer: of frames."""

    def __init__(self, new_steps: Callable[[Picture], Steps], drawer: Drawer) -> None:
        self._new_steps = new_steps
        self._drawer = drawer

    async def outline(
        self, outliner: Outliner, picture: Picture, boxes: Sequence[Box], timer: Stopwatch, permit: FramePermit
    ) -> Outlines:
        """Outline the object in each box; if the interactor finds nothing, the shape has no polygons.

        permit: of the frame, which yields to others.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        tool, threshold, output = outliner.tool, outliner.threshold, outliner.output
        size, steps = (picture.width, picture.height), self._new_steps(picture)

        async def outline(box: Box) -> Drawn:
            prompt, own = Prompt(tool.name, tool.version, "", box=box), timer.part()
            found = await steps.run(Call(tool, own, Supersession.never()), prompt, None)
            timer.share_all(own)
            with timer.stage("geometry"):
                return await self._drawer.shape(
                    found.probabilities, threshold, output, size, prompt.clicks(), outliner.threshold_field
                )

        jobs = (partial(outline, box) for box in boxes)
        try:
            shapes = await permit.side_by_side(jobs, picture.nbytes, timer)
        finally:
            steps.close()
        return Outlines(shapes, tool.name, tool.version, threshold)
