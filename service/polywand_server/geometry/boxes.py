"""Boxes: rectangles in image coordinates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in image pixels (corners at integers), x0 < x1 and y0 < y1."""

    x0: float
    y0: float
    x1: float
    y1: float

    def holds(self, points: NDArray[np.float64]) -> bool:
        """Whether all points [N, 2] (x, y, image pixels) lie inside, or on an edge."""
        return bool(((points >= (self.x0, self.y0)) & (points <= (self.x1, self.y1))).all())

    def overlap(self, other: "Box") -> float:
        """Intersection over union with another box."""
        width = max(0.0, min(self.x1, other.x1) - max(self.x0, other.x0))
        height = max(0.0, min(self.y1, other.y1) - max(self.y0, other.y0))
        return width * height / (self.area + other.area - width * height)

    def union(self, other: "Box") -> "Box":
        """The smallest box that holds both."""
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))

    @property
    def area(self) -> float:
        """In square image pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)
