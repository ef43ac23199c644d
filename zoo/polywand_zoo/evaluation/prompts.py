"""What a tool is asked, and the kinds of beginnings that it understands."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from polywand import Box, Point
from polywand.results import BoxUse


class Kind(StrEnum):
    """How an object is pointed at. Clicks follow the tool's own errors; the others are single prompts."""

    CLICKS = "clicks"
    BOX = "box"
    EXTREME = "extreme"
    BOX_INSIDE = "box_inside"


STARTS = (Kind.BOX, Kind.EXTREME, Kind.BOX_INSIDE)


@dataclass(frozen=True, slots=True)
class Prompt:
    """All that is known of one object, in image pixels with corners at integers. points: in the order of the clicks."""

    points: tuple[Point, ...] = ()
    box: Box | None = None

    def clicks(self) -> NDArray[np.float64]:
        """Positive and negative points [N, 2] (x, y)."""
        clicks = [(point.x, point.y) for point in self.points if point.label != "extreme"]
        return np.array(clicks, np.float64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a tool needs before it answers, as its `polywand` parameters say under `prompt`.

    max_points: of all labels, that it takes.
    """

    min_positive_points: int
    min_negative_points: int
    extreme_points: int
    box: BoxUse
    max_points: int

    def understands(self, kind: Kind) -> bool:
        """Whether a prompt of this kind is enough for an answer, and read."""
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
