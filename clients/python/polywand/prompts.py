"""Prompts as callers say them, to the contract's `Prompt`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypedDict

from polywand import seeds
from polywand.seeds import SeedLike
from polywand.v1 import annotation_pb2 as pb

PointLabel: TypeAlias = Literal["positive", "negative", "extreme"]
"""On the object; not on it; on its outline where it reaches furthest left, up, right or down."""


class Point(NamedTuple):
    """A click, in image pixels with corners at integers: the centre of the pixel in column c is at x = c + 0.5."""

    x: float
    y: float
    label: PointLabel = "positive"


class PromptOptions(TypedDict, total=False):
    """The whole current prompt of one object: what it does not repeat is gone, so undoing is leaving out.

    positive, negative, extreme: (x, y) each, or arrays [N, 2]. Their order is that in which they first appeared in
    the session, so a list that grows refines the last answer.
    points: instead of these three, all clicks in the order in which they were made.
    box: (x0, y0, x1, y1) around the object.
    seed: what the object starts from: an annotation that is to be refined, as a mask or as polygons; see `SeedLike`.
    Without points and box the answer is the seed's own outline.
    object_id: the caller's name for the object, when there are several on the image.
    version: of the model; 0 is the highest that is ready.
    threshold: probability from which a pixel counts, above 0 and below 1; None is the model's own.
    tolerance: how far the outline may be simplified, in pixels; 0 keeps every vertex, None is the server's choice.
    max_points: vertices at most, over all rings. mask: whether to send the mask too.
    """

    points: Iterable[Point] | None
    positive: Iterable[Sequence[float]]
    negative: Iterable[Sequence[float]]
    extreme: Iterable[Sequence[float]]
    box: Sequence[float] | None
    seed: SeedLike | None
    object_id: str
    version: int
    threshold: float | None
    tolerance: float | None
    max_points: int | None
    mask: bool


_LABELS: dict[PointLabel, pb.PointLabel.ValueType] = {
    "positive": pb.POINT_LABEL_POSITIVE,
    "negative": pb.POINT_LABEL_NEGATIVE,
    "extreme": pb.POINT_LABEL_EXTREME,
}


class Prompts:
    """Makes the prompts of one image, and remembers in which order the points of each object appeared."""

    def __init__(self) -> None:
        self._clicks: dict[str, list[Point]] = {}

    def message(
        self,
        model: str,
        *,
        points: Iterable[Point] | None = None,
        positive: Iterable[Sequence[float]] = (),
        negative: Iterable[Sequence[float]] = (),
        extreme: Iterable[Sequence[float]] = (),
        box: Sequence[float] | None = None,
        seed: SeedLike | None = None,
        object_id: str = "",
        version: int = 0,
        threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        mask: bool = False,
    ) -> pb.Prompt:
        """Make one prompt; see `PromptOptions`. Raises TypeError when points are given in both ways."""
        listed = [
            *_labelled(extreme, "extreme"),
            *_labelled(positive, "positive"),
            *_labelled(negative, "negative"),
        ]
        if points is None:
            clicks = in_click_order(listed, self._clicks.get(object_id, []))
        elif listed:
            raise TypeError("give points, or positive, negative and extreme, but not both")
        else:
            clicks = [Point(*point) for point in points]
        self._clicks[object_id] = clicks
        return pb.Prompt(
            model=model,
            version=version,
            object_id=object_id,
            points=[pb.Point(x=float(x), y=float(y), label=_label(label)) for x, y, label in clicks],
            box=None if box is None else pb.Box(**dict(zip(("x0", "y0", "x1", "y1"), _floats(box, 4), strict=True))),
            output=pb.OutputOptions(threshold=threshold, tolerance=tolerance, max_points=max_points, include_mask=mask),
            seed=None if seed is None else seeds.to_message(seed),
        )

    def forget(self) -> None:
        """Forget all objects: the next prompt is about another image."""
        self._clicks.clear()


def in_click_order(points: Iterable[Point], before: Iterable[Point]) -> list[Point]:
    """Sort points so that those of the last prompt come first, as they were, and new ones follow."""
    new, kept = list(points), []
    for point in before:
        if point in new:
            new.remove(point)
            kept.append(point)
    return kept + new


def _labelled(points: Iterable[Sequence[float]], label: PointLabel) -> Iterator[Point]:
    for point in points:
        x, y = _floats(point, 2)
        yield Point(x, y, label)


def _floats(values: Sequence[float], count: int) -> list[float]:
    numbers = [float(value) for value in values] if isinstance(values, Iterable) else []
    if len(numbers) != count:
        raise ValueError(f"{count} numbers are needed, not {values!r}")
    return numbers


def _label(label: PointLabel) -> pb.PointLabel.ValueType:
    if label not in _LABELS:
        raise ValueError(f"a point is positive, negative or extreme, not {label!r}")
    return _LABELS[label]
