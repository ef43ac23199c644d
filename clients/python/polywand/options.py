"""Callers' options of detections and outlines to the contract's messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from numpy.typing import NDArray

from polywand import checks, images
from polywand.errors import InvalidRequest
from polywand.images import ValueRangeLike
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(frozen=True, slots=True)
class LabelMapping:
    """What becomes of one label of a detector.

    model_label: the model's. label: the task's; "" is the model's.
    threshold: score from which a detection with this label counts, 0 to 1; None is that of the detection.
    """

    model_label: str
    label: str = ""
    threshold: float | None = None


LabelsLike: TypeAlias = Mapping[str, str] | Iterable[str | LabelMapping]
"""Labels to keep: a mapping from the model's labels to the task's, or the model's labels, or `LabelMapping` objects."""

BoxLike: TypeAlias = Sequence[float] | NDArray[Any]
"""(x0, y0, x1, y1) in image pixels: x0 < x1, y0 < y1."""


def detect_options(
    *,
    model: str = "",
    version: int = 0,
    threshold: float | None = None,
    labels: LabelsLike | None = None,
    max_detections: int | None = None,
    roi: BoxLike | None = None,
    polygons: bool = False,
    mask: bool = False,
    png: bool = False,
    interactor: str = "",
    interactor_version: int = 0,
    interactor_threshold: float | None = None,
    tolerance: float | None = None,
    max_points: int | None = None,
    value_range: ValueRangeLike | None = None,
) -> pb.DetectRequest:
    """Make a request with all but its image's bytes; `Client.detect` describes the arguments.

    Raises InvalidRequest when an option is out of its range, or an option of outlines is given without an outline.
    """
    outlined = any([checks.flag("polygons", polygons), checks.flag("mask", mask), checks.flag("png", png)])
    interactor = checks.text("interactor", interactor)
    outlines = pb.PolygonOptions(
        model=interactor,
        version=checks.version("interactor_version", interactor_version, interactor),
        output=output_options(
            "interactor_threshold", interactor_threshold, tolerance, max_points, polygons or not outlined, mask, png
        ),
    )
    if not outlined and outlines.ByteSize() > pb.PolygonOptions(output=pb.OutputOptions()).ByteSize():
        raise InvalidRequest(
            "These options are for outlines, which were not requested: add polygons=True, mask=True or png=True.",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    range_ = images.range_message(value_range)
    model = checks.text("model", model)
    return pb.DetectRequest(
        image=None if range_ is None else pb.Image(value_range=range_),
        model=model,
        version=checks.version("version", version, model),
        threshold=None if threshold is None else checks.number("threshold", threshold, 0, 1),
        labels=_labels(labels),
        max_detections=None
        if max_detections is None
        else checks.integer("max_detections", max_detections, 1, checks.MAX_DETECTIONS),
        polygons=outlines if outlined else None,
        roi=box_message("roi", roi),
    )


def output_options(
    threshold_name: str,
    threshold: float | None,
    tolerance: float | None,
    max_points: int | None,
    polygons: bool,
    mask: bool,
    png: bool,
) -> pb.OutputOptions:
    """Make the options of an outline; threshold_name: the name of the caller's argument."""
    return pb.OutputOptions(
        threshold=None if threshold is None else checks.number(threshold_name, threshold, 0, 1, between=True),
        tolerance=None if tolerance is None else checks.number("tolerance", tolerance, 0, checks.MAX_TOLERANCE),
        max_points=None
        if max_points is None
        else checks.integer("max_points", max_points, checks.MIN_POINTS, checks.MAX_POINTS),
        forms=_forms(checks.flag("polygons", polygons), checks.flag("mask", mask), checks.flag("png", png)),
    )


def box_message(argument: str, box: BoxLike | None) -> pb.Box | None:
    """Make the message of a box; None stays None."""
    if box is None:
        return None
    x0, y0, x1, y1 = checks.coordinates(argument, box, 4)
    return pb.Box(x0=x0, y0=y0, x1=x1, y1=y1)


def _forms(polygons: bool, mask: bool, png: bool) -> list[pb.OutputForm.ValueType]:
    forms = [
        form
        for is_wanted, form in (
            (polygons, pb.OUTPUT_FORM_POLYGONS),
            (mask, pb.OUTPUT_FORM_RLE),
            (png, pb.OUTPUT_FORM_PNG),
        )
        if is_wanted
    ]
    return [] if forms == [pb.OUTPUT_FORM_POLYGONS] else forms or [pb.OUTPUT_FORM_BOX]


def _labels(labels: LabelsLike | None) -> list[pb.LabelMapping]:
    if labels is None:
        return []
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise checks.invalid("labels", f"labels are a mapping or a list, not {type(labels).__name__}")
    if isinstance(labels, Mapping):
        return [_label(LabelMapping(theirs, ours)) for theirs, ours in labels.items()]
    return [_label(label if isinstance(label, LabelMapping) else LabelMapping(label)) for label in labels]


def _label(label: LabelMapping) -> pb.LabelMapping:
    return pb.LabelMapping(
        model_label=checks.text("labels", label.model_label),
        label=checks.text("labels", label.label),
        threshold=None if label.threshold is None else checks.number("labels", label.threshold, 0, 1),
    )
