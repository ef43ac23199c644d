"""Prompts of an evaluation, and which kinds of prompts a tool takes."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from polywand import Box, Point
from polywand.catalogue import BoxUse


class Kind(StrEnum):
    """Kinds of prompts. Clicks follow the tool's own errors; the others are single prompts."""

    CLICKS = "clicks"
    BOX = "box"
    EXTREME = "extreme"
    BOX_INSIDE = "box_inside"


STARTS = (Kind.BOX, Kind.EXTREME, Kind.BOX_INSIDE)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The whole prompt of one object, in image pixels with corners at integers. points: in the order of the clicks."""

    points: tuple[Point, ...] = ()
    box: Box | None = None

    def clicks(self) -> NDArray[np.float64]:
        """Positive and negative points [N, 2] (x, y)."""
        clicks = [(point.x, point.y) for point in self.points if point.label != "extreme"]
        return np.array(clicks, np.float64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a tool needs before it answers, as its `polywand` parameters say under `prompt`.

    max_points: the most points that it takes, of all labels together.
    """

    min_positive_points: int
    min_negative_points: int
    extreme_points: int
    box: BoxUse
    max_points: int

    def understands(self, kind: Kind) -> bool:
        """Whether the tool reads a prompt of this kind, and needs nothing else for an answer."""
        if self.min_negative_points:
            return False
        match kind:
            case Kind.CLICKS:
                return self.box != "required" and self.extreme_points == 0
            case Kind.BOX:
                started = self.box == "optional" or (self.box == "required" and self.min_positive_points == 0)
                return started and self.extreme_points == 0
            case Kind.BOX_INSIDE:
                return self.box in ("optional", "required") and self.extreme_points == 0
            case Kind.EXTREME:
                return self.extreme_points == 4 and self.box != "required" and self.min_positive_points == 0
