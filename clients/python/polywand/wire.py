"""Between the contract's messages and this package's values; both clients use it, and nothing here waits."""

from collections.abc import Mapping
from typing import TypedDict

import grpc
import numpy as np

from polywand import errors, images
from polywand.images import ImageLike
from polywand.raster import decode_rle
from polywand.results import (
    Box,
    BoxUse,
    Detection,
    Detections,
    InteractorSpec,
    Model,
    ModelKind,
    ModelVersion,
    Polygon,
    Segmentation,
    Timing,
)
from polywand.v1 import annotation_pb2 as pb


class DetectOptions(TypedDict, total=False):
    """How to detect.

    model: a detector. version: of it; 0 is the highest that is ready.
    threshold: score from which a detection counts, 0 to 1; None is the model's own.
    labels: from the model's labels to the task's; labels that are not in it are dropped. None keeps all as they are.
    max_detections: at most, best first; None is 100.
    """

    model: str
    version: int
    threshold: float | None
    labels: Mapping[str, str] | None
    max_detections: int | None


_KINDS: dict[int, ModelKind] = {pb.MODEL_KIND_INTERACTOR: "interactor", pb.MODEL_KIND_DETECTOR: "detector"}
_BOX_USES: dict[int, BoxUse] = {
    pb.BOX_USE_NONE: "none",
    pb.BOX_USE_OPTIONAL: "optional",
    pb.BOX_USE_REQUIRED: "required",
}


def detect_request(
    image: ImageLike,
    *,
    model: str = "nanodet",
    version: int = 0,
    threshold: float | None = None,
    labels: Mapping[str, str] | None = None,
    max_detections: int | None = None,
) -> pb.DetectRequest:
    """Make the request for one image; see `DetectOptions`. Raises InvalidRequest when the image cannot be read."""
    return pb.DetectRequest(
        model=model,
        version=version,
        image=images.to_message(image),
        threshold=threshold,
        labels=labels,
        max_detections=max_detections,
    )


def model(message: pb.Model) -> Model:
    """Read one tool."""
    spec = message.interactor
    return Model(
        name=message.name,
        kind=_KINDS.get(message.kind, "unknown"),
        display_name=message.display_name,
        versions=tuple(ModelVersion(v.version, v.ready, v.not_ready_reason) for v in message.versions),
        ready=message.ready,
        not_ready_reason=message.not_ready_reason,
        help_message=message.help_message,
        animated_gif=message.animated_gif,
        license=message.license,
        weights_source=message.weights_source,
        default_threshold=message.default_threshold,
        interactor=InteractorSpec(
            spec.min_positive_points,
            spec.min_negative_points,
            spec.extreme_points,
            _BOX_USES.get(spec.box, "unknown"),
            spec.max_points,
        )
        if message.HasField("interactor")
        else None,
        labels=tuple(message.detector.labels),
    )


def segmentation(message: pb.Segmentation, timing: pb.Timing, skipped: int) -> Segmentation:
    """Read one outline. Raises ServerError when its mask is not one."""
    shape = message.shape
    try:
        mask = decode_rle(shape.mask.counts, shape.mask.width, shape.mask.height) if shape.HasField("mask") else None
    except ValueError as error:
        raise errors.ServerError(f"The server sent a broken mask: {error}.", grpc.StatusCode.DATA_LOSS) from error
    return Segmentation(
        polygons=tuple(_polygon(polygon) for polygon in shape.polygons),
        box=_box(shape.box) if shape.HasField("box") else None,
        area=shape.area,
        mask=mask,
        model=message.model,
        version=message.version,
        threshold=message.threshold,
        tolerance=shape.tolerance,
        iou=shape.iou,
        skipped=skipped,
        timing=_timing(timing),
    )


def detections(message: pb.DetectResponse) -> Detections:
    """Read what was found on one image."""
    return Detections(
        items=tuple(Detection(d.label, d.model_label, d.score, _box(d.box)) for d in message.detections),
        width=message.image.width,
        height=message.image.height,
        model=message.model,
        version=message.version,
        timing=_timing(message.timing),
    )


def _polygon(message: pb.Polygon) -> Polygon:
    exterior, *holes = (
        np.array(ring.coordinates, np.float32).reshape(-1, 2) for ring in (message.exterior, *message.holes)
    )
    return Polygon(exterior, tuple(holes))


def _box(message: pb.Box) -> Box:
    return Box(message.x0, message.y0, message.x1, message.y1)


def _timing(message: pb.Timing) -> Timing:
    return Timing(
        received_unix_us=message.received_unix_us,
        wait_us=message.wait_us,
        decode_us=message.decode_us,
        prepare_us=message.prepare_us,
        triton_us=message.triton_us,
        geometry_us=message.geometry_us,
        total_us=message.total_us,
        inferences=message.inferences,
    )
