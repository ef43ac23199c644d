"""Conversion between the contract's messages and this package's values, for both clients."""

from collections.abc import Mapping
from typing import TypedDict

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand import checks, errors, images
from polywand.errors import InvalidRequest
from polywand.images import ImageLike, ValueRangeLike
from polywand.results import (
    Box,
    BoxUse,
    Detection,
    Detections,
    InteractorSpec,
    Model,
    ModelKind,
    ModelState,
    ModelVersion,
    Outline,
    Polygon,
    Segmentation,
    Timing,
)
from polywand_contract.raster import decode_rle
from polywand_contract.v1 import annotation_pb2 as pb


class DetectOptions(TypedDict, total=False):
    """Options of a detection.

    model: a detector. version: of the model; 0 is the highest that is ready.
    threshold: score from which a detection counts, 0 to 1; None is the model's own.
    labels: from the model's labels to the task's; detections with other labels are dropped. None keeps all.
    max_detections: most detections, best first, 1 to 1000; None is 100.
    polygons: whether to outline each detection too, by an interactor that starts from its box: True for the server's
    choice, or an interactor's name. The options of these outlines, which raise InvalidRequest without `polygons`:
    polygons_version: of a named interactor; 0 is the highest that is ready.
    polygons_threshold: probability from which a pixel counts, above 0 and below 1; None is the interactor's own.
    tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
    vertex, None is the server's choice.
    max_points: most vertices of one outline, over all its rings, 3 to 100000.
    mask: whether to send the masks too.
    For all images: value_range: the values that are black and white in a PNG or TIFF file with more than 8 bits, such
    as (0, 1023); None: chosen from the values of each file.
    """

    model: str
    version: int
    threshold: float | None
    labels: Mapping[str, str] | None
    max_detections: int | None
    polygons: bool | str
    polygons_version: int
    polygons_threshold: float | None
    tolerance: float | None
    max_points: int | None
    mask: bool
    value_range: ValueRangeLike | None


_KINDS: dict[int, ModelKind] = {pb.MODEL_KIND_INTERACTOR: "interactor", pb.MODEL_KIND_DETECTOR: "detector"}
_STATES: dict[int, ModelState] = {
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_UNAVAILABLE: "unavailable",
    pb.MODEL_STATE_FAILED: "failed",
}
_BOX_USES: dict[int, BoxUse] = {
    pb.BOX_USE_NONE: "none",
    pb.BOX_USE_OPTIONAL: "optional",
    pb.BOX_USE_REQUIRED: "required",
}


def detect_options(
    *,
    model: str = "nanodet",
    version: int = 0,
    threshold: float | None = None,
    labels: Mapping[str, str] | None = None,
    max_detections: int | None = None,
    polygons: bool | str = False,
    polygons_version: int = 0,
    polygons_threshold: float | None = None,
    tolerance: float | None = None,
    max_points: int | None = None,
    mask: bool = False,
    value_range: ValueRangeLike | None = None,
) -> pb.DetectRequest:
    """Make a request with all but its image's bytes; see `DetectOptions`.

    Raises InvalidRequest when an option is out of its range, or an option of outlines is given without `polygons`.
    """
    output = output_options("polygons_threshold", polygons_threshold, tolerance, max_points, mask)
    named = checks.text("polygons", polygons) if isinstance(polygons, str) else ""
    options = pb.PolygonOptions(
        model=named, version=checks.integer("polygons_version", polygons_version, 0, checks.MAX_VERSION), output=output
    )
    if not polygons and options.ByteSize() > pb.PolygonOptions(output=pb.OutputOptions()).ByteSize():
        raise InvalidRequest(
            "These options are for polygons, which were not requested: add polygons=True.",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    range_ = images.range_message(value_range)
    return pb.DetectRequest(
        image=None if range_ is None else pb.Image(value_range=range_),
        model=checks.text("model", model),
        version=checks.integer("version", version, 0, checks.MAX_VERSION),
        threshold=None if threshold is None else checks.number("threshold", threshold, 0, 1),
        labels=_labels(labels),
        max_detections=None
        if max_detections is None
        else checks.integer("max_detections", max_detections, 1, checks.MAX_DETECTIONS),
        polygons=options if polygons else None,
    )


def detect_request(image: ImageLike, options: pb.DetectRequest) -> pb.DetectRequest:
    """Make the request for one image. Raises InvalidRequest when the image cannot be read."""
    request = pb.DetectRequest(image=images.to_message(image))
    request.MergeFrom(options)
    return request


def output_options(
    threshold_name: str, threshold: float | None, tolerance: float | None, max_points: int | None, mask: bool
) -> pb.OutputOptions:
    """Make the options of an outline; threshold_name: the name of the caller's argument."""
    return pb.OutputOptions(
        threshold=None if threshold is None else checks.number(threshold_name, threshold, 0, 1, between=True),
        tolerance=None if tolerance is None else checks.number("tolerance", tolerance, 0, checks.MAX_TOLERANCE),
        max_points=None
        if max_points is None
        else checks.integer("max_points", max_points, checks.MIN_POINTS, checks.MAX_POINTS),
        forms=[pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE] if mask else [],
    )


def _labels(labels: Mapping[str, str] | None) -> list[pb.LabelMapping]:
    if labels is None:
        return []
    if not isinstance(labels, Mapping):
        raise checks.invalid("labels", f"a mapping from the model's labels to the task's, not {type(labels).__name__}")
    return [
        pb.LabelMapping(model_label=checks.text("labels", theirs), label=checks.text("labels", ours))
        for theirs, ours in labels.items()
    ]


def model(message: pb.Model) -> Model:
    """Read one tool."""
    spec = message.interactor
    return Model(
        name=message.name,
        kind=_KINDS.get(message.kind, "unknown"),
        display_name=message.display_name,
        versions=tuple(
            ModelVersion(v.version, _STATES.get(v.state, "unknown"), v.state_message) for v in message.versions
        ),
        state=_STATES.get(message.state, "unknown"),
        state_message=message.state_message,
        help_message=message.help_message,
        animated_gif=message.animated_gif,
        license=message.license,
        weights_source=message.weights_source,
        default_threshold=message.default_threshold,
        interactor=InteractorSpec(
            spec.min_positive_points,
            spec.min_negative_points,
            spec.min_extreme_points,
            _BOX_USES.get(spec.box, "unknown"),
            spec.max_points,
        )
        if message.HasField("interactor")
        else None,
        labels=tuple(label.name for label in message.detector.labels),
    )


def segmentation(message: pb.Segmentation, timing: pb.Timing, skipped: int) -> Segmentation:
    """Read the answer to a prompt. Raises ServerError when its mask is invalid."""
    return Segmentation(
        **_outline(message.shape),
        model=message.model,
        version=message.version,
        threshold=message.threshold,
        skipped=skipped,
        timing=_timing(timing),
        provisional=message.provisional,
    )


def detections(message: pb.DetectResponse) -> Detections:
    """Read the detections on one image. Raises ServerError when a mask is invalid."""
    return Detections(
        items=tuple(_detection(detection, message.polygons) for detection in message.detections),
        width=message.image.width,
        height=message.image.height,
        model=message.model,
        version=message.version,
        timing=_timing(message.timing),
    )


def _detection(message: pb.Detection, source: pb.PolygonSource) -> Detection:
    outline = None
    if message.HasField("shape"):
        outline = Outline(
            **_outline(message.shape), model=source.model, version=source.version, threshold=source.threshold
        )
    return Detection(message.label, message.model_label, message.score, _box(message.box), outline)


class _OutlineFields(TypedDict):
    """The fields of `Outline` that the contract's `Shape` has."""

    polygons: tuple[Polygon, ...]
    box: Box | None
    area: float
    mask: NDArray[np.bool_] | None
    tolerance: float
    iou: float


def _outline(shape: pb.Shape) -> _OutlineFields:
    try:
        mask = decode_rle(shape.rle.counts, shape.rle.width, shape.rle.height) if shape.HasField("rle") else None
    except ValueError as error:
        raise errors.ServerError(f"The server sent an invalid mask: {error}.", grpc.StatusCode.DATA_LOSS) from error
    return {
        "polygons": tuple(_polygon(polygon) for polygon in shape.polygons),
        "box": _box(shape.box) if shape.HasField("box") else None,
        "area": shape.area,
        "mask": mask,
        "tolerance": shape.tolerance,
        "iou": shape.iou,
    }


def _polygon(message: pb.Polygon) -> Polygon:
    exterior, *holes = (
        np.array(ring.coordinates, np.float32).reshape(-1, 2) for ring in (message.exterior, *message.holes)
    )
    return Polygon(exterior, tuple(holes))


def _box(message: pb.Box) -> Box:
    return Box(message.x0, message.y0, message.x1, message.y1)


def _timing(message: pb.Timing) -> Timing:
    return Timing(
        received_unix_us=message.receive_time.ToMicroseconds(),
        wait_us=message.wait_us,
        decode_us=message.decode_us,
        prepare_us=message.prepare_us,
        triton_us=message.triton_us,
        geometry_us=message.geometry_us,
        total_us=message.total_us,
        inferences=message.inferences,
    )
