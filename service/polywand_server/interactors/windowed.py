"""Prompts on a part of an image, as if the rest did not exist."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from polywand_server.geometry.boxes import Box
from polywand_server.geometry.windows import Window
from polywand_server.images import Picture
from polywand_server.interactors.checks import check_inside
from polywand_server.interactors.estimate import Segmentation
from polywand_server.interactors.predictor import Predictor
from polywand_server.interactors.prompt import Incomplete, Prompt
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch


class Answering(Protocol):
    """Answers prompts on one image; implemented by `Predictor` too."""

    async def answer(self, prompt: Prompt, timer: Stopwatch) -> Segmentation | Incomplete:
        """Check, find and draw a prompt."""
        ...

    def close(self) -> None:
        """End all work."""
        ...


@dataclass(frozen=True, slots=True)
class Predictors:
    """Makes predictors for one kind of work. new: for a picture. lane: for what takes milliseconds."""

    new: Callable[[Picture], Predictor]
    lane: Lane

    async def of(self, picture: Picture, roi: Box | None) -> Answering:
        """Make what answers prompts on a picture, or on the part of it that a box says, in whole pixels.

        Raises:
            InvalidInputError: the box reaches outside the image.
        """
        if roi is None:
            return self.new(picture)
        window = Window.around(roi, picture)
        part = await self.lane.compute(partial(window.cut, picture))
        return WindowedPredictor(self.new(part), window, self.lane)


class WindowedPredictor:
    """Answers prompts on a part of an image, in the image's coordinates. predictor: of the part."""

    def __init__(self, predictor: Predictor, window: Window, lane: Lane) -> None:
        self._predictor = predictor
        self._window = window
        self._lane = lane

    def close(self) -> None:
        """See Answering."""
        self._predictor.close()

    async def answer(self, prompt: Prompt, timer: Stopwatch) -> Segmentation | Incomplete:
        """See Answering."""
        check_inside(prompt, self._window.box, "the region of interest")
        with timer.stage("prepare"):
            inner = await self._inward(prompt)
        answer = await self._predictor.answer(inner, timer)
        if isinstance(answer, Incomplete):
            return answer
        with timer.stage("geometry"):
            return await self._lane.compute(partial(self._outward, answer))

    async def _inward(self, prompt: Prompt) -> Prompt:
        window, seed = self._window, prompt.seed
        points = tuple(replace(point, x=point.x - window.left, y=point.y - window.top) for point in prompt.points)
        if seed is not None:
            seed = await self._lane.compute(partial(window.seed_inward, seed))
        return replace(prompt, points=points, box=prompt.box and window.inward(prompt.box), seed=seed)

    def _outward(self, answer: Segmentation) -> Segmentation:
        window = self._window
        return replace(
            answer,
            shape=window.drawn_outward(answer.shape),
            width=window.image_width,
            height=window.image_height,
            alternatives=[replace(other, shape=window.drawn_outward(other.shape)) for other in answer.alternatives],
        )
