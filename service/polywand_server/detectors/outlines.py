"""Outlines of detections: which interactor makes them, and one shape for each box."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from polywand_server.detectors.places import Place
from polywand_server.errors import InvalidInputError, NotFoundError, PolywandError, UnavailableError
from polywand_server.geometry.drawn import Drawn
from polywand_server.geometry.shapes import OutputOptions
from polywand_server.images import Picture
from polywand_server.interactors.batches import segment_boxes
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Box, Prompt, missing
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.registry import Registry

# Who makes outlines when the request names nobody: the first of these that is ready and starts from a box.
DEFAULT_MODELS = ("wand_box", "wand_click")

_FIELD = "polygons."


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """How to outline detections; the fields mean what the contract's `PolygonOptions` says, None is its default."""

    model: str | None = None
    version: int = 0
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True, slots=True)
class Outliner:
    """An interactor that starts from a box, and how its outlines are wanted."""

    tool: Interactor
    output: OutputOptions

    @property
    def threshold(self) -> float:
        """Probability from which a pixel belongs to an object."""
        return self.output.threshold or self.tool.spec.threshold


@dataclass(frozen=True, slots=True)
class Outlines:
    """The shapes of one image's detections, in their order, and what made them."""

    shapes: Sequence[Drawn]
    model: str
    version: int
    threshold: float


def find_outliner(registry: Registry, options: PolygonOptions) -> Outliner:
    """Find the interactor that is to outline detections.

    Raises:
        NotFoundError, WrongStateError (it is a detector), InvalidInputError (a box is not enough for it),
        UnavailableError (not now)
    """
    if options.model is None:
        return Outliner(_default(registry), options.output)
    try:
        tool = registry.interactor(options.model, options.version, _FIELD)
    except UnavailableError as error:
        raise _not_now(error) from error
    lacking = _lacking(tool)
    if lacking:
        raise InvalidInputError(f"{_FIELD}model", f"model '{tool.name}' {lacking}")
    return Outliner(tool, options.output)


async def outline(
    lane: Lane,
    drawer: Drawer,
    outliner: Outliner,
    picture: Picture,
    boxes: Sequence[Box],
    watch: Stopwatch,
    place: Place,
) -> Outlines:
    """Outline the object in each box; where the interactor finds nothing, the shape has no polygons.

    place: the frame's, which lets others go first between two batches.

    Raises:
        UnavailableError, DeadlineError, ModelFailedError
    """
    tool, output, threshold = outliner.tool, outliner.output, outliner.threshold
    no_clicks = np.zeros((0, 2))

    async def draw(estimate: Estimate) -> Drawn:
        size = picture.width, picture.height
        field = f"{_FIELD}output.threshold"
        return await drawer.shape(estimate.probabilities, threshold, output, size, no_clicks, field)

    async def let_others_go() -> None:
        await place.let_others_go(picture.nbytes, watch)

    shapes = await segment_boxes(lane, tool, picture, boxes, watch, draw, let_others_go)
    return Outlines(shapes, tool.name, tool.version, threshold)


def _default(registry: Registry) -> Interactor:
    away: UnavailableError | None = None
    for name in DEFAULT_MODELS:
        try:
            tool = registry.interactor(name, 0, _FIELD)
        except UnavailableError as error:
            away = away or error
        except PolywandError:
            continue  # it is not there, or it is something else of that name
        else:
            if not _lacking(tool):
                return tool
    if away is not None:
        raise _not_now(away) from away
    listed = " and ".join(f"'{name}'" for name in DEFAULT_MODELS)
    raise NotFoundError(f"{_FIELD}model", f"of {listed} none is here that starts from a box: name another interactor")


def _not_now(error: UnavailableError) -> UnavailableError:
    """Say which of a request's two models it is that is not ready."""
    return UnavailableError(f"{_FIELD}model: {error}", error.retry_seconds)


def _lacking(tool: Interactor) -> str:
    """Why a box is not enough for an interactor; "" when it is."""
    if tool.spec.prompt.box == "none":
        return "reads no box"
    lacking = missing(Prompt(tool.name, tool.version, "", box=Box(0, 0, 1, 1)), tool.spec.prompt)
    return f"needs more than a box: {lacking}" if lacking else ""
