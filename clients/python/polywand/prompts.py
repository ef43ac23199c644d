"""Callers' prompts to the contract's `Prompt`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polywand import checks, seeds
from polywand.options import BoxLike, box_message, output_options
from polywand.seeds import SeedLike
from polywand_contract.v1 import annotation_pb2 as pb

PointLabel: TypeAlias = Literal["positive", "negative", "extreme"]
"""On the object; not on it; on its outline at the left-, top-, right- or bottom-most point."""


class Point(NamedTuple):
    """A click, in image pixels with corners at integers: the centre of the pixel in column c is at x = c + 0.5."""

    x: float
    y: float
    label: PointLabel = "positive"


PointsLike: TypeAlias = Iterable[Sequence[Any]] | NDArray[Any]
"""Clicks in their order: (x, y, label) each, or (x, y) for a positive one; or an array [N, 2] or [N, 3]. A label is
"positive", "negative" or "extreme"; 1 and 0 are positive and negative, as in SAM."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The whole prompt of one object, for `segment`.

    points: clicks in their order; see `PointsLike`. box: (x0, y0, x1, y1) around the object.
    seed: an existing annotation to refine; see `SeedLike`.
    object_id: the caller's id for the object, which its result has too; at most 128 bytes.
    model, version: an interactor; "" is that of the call, and 0 its highest version that is ready.
    """

    points: PointsLike = ()
    box: BoxLike | None = None
    seed: SeedLike | None = None
    object_id: str = ""
    model: str = ""
    version: int = 0


_LABELS: dict[PointLabel, pb.PointLabel.ValueType] = {
    "positive": pb.POINT_LABEL_POSITIVE,
    "negative": pb.POINT_LABEL_NEGATIVE,
    "extreme": pb.POINT_LABEL_EXTREME,
}
_SAM_LABELS: dict[float, PointLabel] = {1: "positive", 0: "negative"}


class Prompts:
    """Makes the prompts of one image, and remembers the order of each object's points."""

    def __init__(self) -> None:
        self._clicks: dict[str, list[Point]] = {}

    def message(
        self,
        model: str = "",
        *,
        points: PointsLike | None = None,
        positive: Iterable[Sequence[float]] = (),
        negative: Iterable[Sequence[float]] = (),
        extreme: Iterable[Sequence[float]] = (),
        box: BoxLike | None = None,
        seed: SeedLike | None = None,
        object_id: str = "",
        version: int = 0,
        threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        polygons: bool = True,
        mask: bool = False,
        png: bool = False,
    ) -> pb.Prompt:
        """Make one prompt; `Session.prompt` describes the arguments.

        Raises InvalidRequest when an argument is out of its range, and TypeError when points are given in both ways.
        """
        object_id = checks.text("object_id", object_id, checks.MAX_OBJECT_ID_BYTES)
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
            clicks = _points(points)
        message = to_message(Prompt(clicks, box, seed, object_id, model, version))
        message.output.CopyFrom(output_options("threshold", threshold, tolerance, max_points, polygons, mask, png))
        self._clicks[object_id] = clicks
        return message

    def forget(self, object_id: str | None) -> pb.InteractRequest:
        """Forget one object, or with None all; return the request for it. Raises InvalidRequest for an invalid id."""
        if object_id is None:
            self.clear()
            return pb.InteractRequest(forget=pb.Forget(all=True))
        object_id = checks.text("object_id", object_id, checks.MAX_OBJECT_ID_BYTES)
        self._clicks.pop(object_id, None)
        return pb.InteractRequest(forget=pb.Forget(object_id=object_id))

    def clear(self) -> None:
        """Forget all objects, for another image."""
        self._clicks.clear()


def to_message(prompt: Prompt) -> pb.Prompt:
    """Make the message of a prompt, without options of its output. Raises InvalidRequest as `Prompts.message` does."""
    model = checks.text("model", prompt.model)
    return pb.Prompt(
        model=model,
        version=checks.version("version", prompt.version, model),
        object_id=checks.text("object_id", prompt.object_id, checks.MAX_OBJECT_ID_BYTES),
        points=[pb.Point(x=x, y=y, label=_LABELS[label]) for x, y, label in _points(prompt.points)],
        box=box_message("box", prompt.box),
        seed=None if prompt.seed is None else seeds.to_message(prompt.seed),
    )


def in_click_order(points: Iterable[Point], before: Iterable[Point]) -> list[Point]:
    """Sort points: first those of the last prompt, in their order, then new ones."""
    new, kept = list(points), []
    for point in before:
        if point in new:
            new.remove(point)
            kept.append(point)
    return kept + new


def _labelled(points: Iterable[Sequence[float]], label: PointLabel) -> Iterator[Point]:
    for point in checks.rows(label, points):
        x, y = checks.coordinates(label, point, 2)
        yield Point(x, y, label)


def _points(points: PointsLike) -> list[Point]:
    return [_point(point) for point in checks.rows("points", points)]


def _point(point: Sequence[Any]) -> Point:
    parts = list(checks.rows("points", point))
    x, y = checks.coordinates("points", parts[:2], 2)
    return Point(x, y, _label(parts[2:]))


def _label(given: list[Any]) -> PointLabel:
    """Return the label after a point's coordinates; positive if there is none."""
    if not given:
        return "positive"
    label: PointLabel | None = None
    if isinstance(given[0], int | float | np.number):
        label = _SAM_LABELS.get(float(given[0]))
    elif isinstance(given[0], str) and given[0] in _LABELS:
        label = given[0]
    if label is None or len(given) > 1:
        raise checks.invalid("points", f"a point's label is positive (1), negative (0) or extreme, not {given!r}")
    return label
