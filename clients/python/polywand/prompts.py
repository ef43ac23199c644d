"""Callers' prompts to the contract's `Prompt`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

from polywand import checks, seeds
from polywand.seeds import SeedLike
from polywand.wire import output_options
from polywand_contract.v1 import annotation_pb2 as pb

PointLabel: TypeAlias = Literal["positive", "negative", "extreme"]
"""On the object; not on it; on its outline at the left-, top-, right- or bottom-most point."""


class Point(NamedTuple):
    """A click, in image pixels with corners at integers: the centre of the pixel in column c is at x = c + 0.5."""

    x: float
    y: float
    label: PointLabel = "positive"


class PromptOptions(TypedDict, total=False):
    """The whole current prompt of one object. To undo a point, leave it out.

    positive, negative, extreme: (x, y) each, or arrays [N, 2]. They are ordered by when they first appeared in the
    session, so adding points refines the last answer.
    points: instead of these three, all clicks in order.
    box: (x0, y0, x1, y1) around the object.
    seed: an existing annotation to refine, as a mask or as polygons; see `SeedLike`. Without points and box the answer
    is the seed's own outline.
    object_id: the caller's id for the object, if there are several on the image.
    version: of the model; 0 is the highest that is ready.
    threshold: probability from which a pixel counts, above 0 and below 1; None is the model's own.
    tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
    vertex, None is the server's choice.
    max_points: most vertices, over all rings, 3 to 100000. mask: whether to send the mask too.
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
    """Makes the prompts of one image, and remembers the order of each object's points."""

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
        """Make one prompt; see `PromptOptions`.

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
            clicks = [_point(point) for point in checks.rows("points", points)]
        message = pb.Prompt(
            model=checks.text("model", model),
            version=checks.integer("version", version, 0, checks.MAX_VERSION),
            object_id=object_id,
            points=[pb.Point(x=x, y=y, label=_LABELS[label]) for x, y, label in clicks],
            box=None if box is None else _box(box),
            output=output_options("threshold", threshold, tolerance, max_points, mask),
            seed=None if seed is None else seeds.to_message(seed),
        )
        self._clicks[object_id] = clicks
        return message

    def forget(self) -> None:
        """Forget all objects, for another image."""
        self._clicks.clear()


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


def _point(point: Sequence[Any]) -> Point:
    parts = list(checks.rows("points", point))
    x, y = checks.coordinates("points", parts[:2], 2)
    label = parts[2] if len(parts) > 2 else "positive"
    if len(parts) > 3 or not isinstance(label, str) or label not in _LABELS:
        raise checks.invalid("points", f"a point is positive, negative or extreme, not {parts[2:]!r}")
    return Point(x, y, label)


def _box(box: Sequence[float]) -> pb.Box:
    x0, y0, x1, y1 = checks.coordinates("box", box, 4)
    return pb.Box(x0=x0, y0=y0, x1=x1, y1=y1)
