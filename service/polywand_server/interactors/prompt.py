"""Prompts: the current prompt of one object, what it lacks for an interactor, and when it is superseded."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from polywand_server.geometry.boxes import Box
from polywand_server.geometry.seeds import Seed
from polywand_server.geometry.shapes import OutputOptions
from polywand_server.tools.specs import PromptSpec

# Memory of a prompt, and of each of its points (measured, rounded up).
PROMPT_BYTES = 1024
POINT_BYTES = 128


class Label(IntEnum):
    """Labels of rows of the `POINTS` tensor, as in Segment Anything; 4 is our own."""

    PADDING = -1
    NEGATIVE = 0
    POSITIVE = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3
    EXTREME = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a prompt in image pixels (corners at integers)."""

    x: float
    y: float
    label: Label


@dataclass(frozen=True, slots=True)
class Prompt:
    """The whole current prompt of one object.

    points: in the order in which they were clicked. seed: the mask that the object starts from, or None.
    """

    model: str
    version: int
    object_id: str
    points: tuple[Point, ...] = ()
    box: Box | None = None
    seed: Seed | None = None
    output: OutputOptions = field(default_factory=OutputOptions)

    @property
    def nbytes(self) -> int:
        """Estimated memory while it waits."""
        return PROMPT_BYTES + POINT_BYTES * len(self.points) + (self.seed.nbytes if self.seed is not None else 0)

    def builds_on(self, other: "Prompt") -> bool:
        """Whether it is the other prompt, or that with more points, so that the other's estimate is used for it."""
        start = self.model, self.version, self.points[: len(other.points)], self.box
        if start != (other.model, other.version, other.points, other.box):
            return False
        return (self.seed and self.seed.digest) == (other.seed and other.seed.digest)

    def up_to(self, count: int) -> "Prompt":
        """Return the prompt with only its first `count` points."""
        return self if count == len(self.points) else replace(self, points=self.points[:count])

    @property
    def is_seed_alone(self) -> bool:
        """Whether the prompt is a seed without points and box."""
        return self.seed is not None and not self.points and self.box is None

    def count(self, label: Label) -> int:
        """Count the points with this label."""
        return sum(point.label == label for point in self.points)

    def clicks(self) -> NDArray[np.float64]:
        """Positive and negative points [N, 2] (x, y), image pixels."""
        return self._labelled(Label.POSITIVE, Label.NEGATIVE)

    def positive_clicks(self) -> NDArray[np.float64]:
        """Positive points [N, 2] (x, y), image pixels."""
        return self._labelled(Label.POSITIVE)

    def starting_box(self) -> Box | None:
        """The box that the object starts from: the prompt's, or that of its extreme points, or None."""
        extreme = [point for point in self.points if point.label == Label.EXTREME]
        if self.box is not None or not extreme:
            return self.box
        xs, ys = [point.x for point in extreme], [point.y for point in extreme]
        return Box(min(xs), min(ys), max(xs), max(ys))

    def _labelled(self, *labels: Label) -> NDArray[np.float64]:
        points = [(point.x, point.y) for point in self.points if point.label in labels]
        return np.array(points, np.float64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Incomplete:
    """What a prompt still lacks: numbers of points, and whether a box."""

    positive: int = 0
    negative: int = 0
    extreme: int = 0
    box: bool = False

    def __bool__(self) -> bool:
        return bool(self.positive or self.negative or self.extreme or self.box)

    def __str__(self) -> str:
        wants = [_points(self.positive, "positive"), _points(self.negative, "negative")]
        wants += [_points(self.extreme, "extreme"), "a box" if self.box else ""]
        return ", ".join(want for want in wants if want)


def _points(count: int, label: str) -> str:
    if count == 0:
        return ""
    return f"one more {label} point" if count == 1 else f"{count} more {label} points"


def incomplete(prompt: Prompt, spec: PromptSpec) -> Incomplete:
    """Compare a prompt with what the interactor needs.

    An optional box stands in for positive points, and so does a seed; a seed alone needs nothing more.
    """
    if prompt.is_seed_alone:
        return Incomplete()
    started = prompt.seed is not None or (prompt.box is not None and spec.box == "optional")
    positive = 0 if started else spec.min_positive_points
    return Incomplete(
        positive=max(0, positive - prompt.count(Label.POSITIVE)),
        negative=max(0, spec.min_negative_points - prompt.count(Label.NEGATIVE)),
        extreme=max(0, spec.extreme_points - prompt.count(Label.EXTREME)),
        box=spec.box == "required" and prompt.box is None,
    )


def first_step(prompt: Prompt, spec: PromptSpec) -> int:
    """Return the fewest of its points with which a complete prompt is complete already.

    Its box counts as drawn before all points: 0 where the box is enough. A seed comes before the box; alone it is no
    step, as no network is run.
    """
    fewest = 0 if prompt.box is not None else 1

    # Further points never make a complete prompt incomplete.
    def is_enough(count: int) -> bool:
        return not incomplete(prompt.up_to(count), spec)

    count = len(prompt.points)
    return bisect_left(range(count), True, lo=min(fewest, count), key=is_enough)


@dataclass(frozen=True, slots=True)
class Supersession:
    """Tells the work on one prompt when to stop.

    is_superseded: whether a newer prompt of the object waits that does not build on this one. prompt_came: set when
    another prompt comes; at most one task waits for it at a time.
    """

    is_superseded: Callable[[], bool]
    prompt_came: asyncio.Event

    @classmethod
    def never(cls) -> Self:
        """Of a prompt that has no newer ones."""
        return cls(lambda: False, asyncio.Event())

    async def wait(self) -> None:
        """Wait until the prompt is superseded."""
        while not self.is_superseded():
            self.prompt_came.clear()
            await self.prompt_came.wait()
