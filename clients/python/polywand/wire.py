"""Conversion between the contract's messages and this package's values, for both clients."""

from typing import TypedDict

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand import errors, images
from polywand.errors import PolywandError
from polywand.images import ImageLike
from polywand.results import (
    Box,
    Detection,
    Detections,
    Outline,
    Polygon,
    ScoreKind,
    Segmentation,
    SegmentResult,
    Timing,
)
from polywand_contract.raster import decode_rle
from polywand_contract.v1 import annotation_pb2 as pb

_SCORE_KINDS: dict[int, ScoreKind] = {
    pb.SCORE_KIND_MEAN_PROBABILITY: "mean_probability",
    pb.SCORE_KIND_PREDICTED_IOU: "predicted_iou",
    pb.SCORE_KIND_SEED: "seed",
}


def detect_request(image: ImageLike, options: pb.DetectRequest) -> pb.DetectRequest:
    """Make the request for one image. Raises InvalidRequest when the image cannot be read."""
    request = pb.DetectRequest(image=images.to_message(image))
    request.MergeFrom(options)
    return request


def segmentation(message: pb.Segmentation, timing: pb.Timing, skipped: int, width: int, height: int) -> Segmentation:
    """Read the answer to a prompt. width, height: of the image. Raises ServerError when its mask is invalid."""
    kind = _SCORE_KINDS.get(message.score_kind, "unknown")
    tool = _Tool(model=message.model, version=message.version, threshold=message.threshold)
    return Segmentation(
        **_outline(message.shape, width, height),
        **tool,
        score=message.score,
        score_kind=kind,
        alternatives=tuple(
            Outline(**_outline(other.shape, width, height), **tool, score=other.score, score_kind=kind)
            for other in message.alternatives
        ),
        skipped=skipped,
        timing=_timing(timing),
        provisional=message.provisional,
    )


def segment_results(message: pb.SegmentResponse, count: int) -> list[SegmentResult]:
    """Read the answers to `count` prompts. Raises ServerError when there are more or fewer."""
    if len(message.results) != count:
        raise errors.unexpected(f"{len(message.results)} results for {count} prompts")
    return [_segment_result(result, message) for result in message.results]


def detections(message: pb.DetectResponse) -> Detections:
    """Read the detections on one image. Raises ServerError when a mask is invalid."""
    return Detections(
        items=tuple(_detection(detection, message) for detection in message.detections),
        width=message.image.width,
        height=message.image.height,
        model=message.model,
        version=message.version,
        timing=_timing(message.timing),
    )


def _segment_result(result: pb.SegmentResult, message: pb.SegmentResponse) -> SegmentResult:
    outline: Segmentation | None = None
    error: PolywandError | None = None
    try:
        match result.WhichOneof("result"):
            case "segmentation":
                size = message.image.width, message.image.height
                outline = segmentation(result.segmentation, message.timing, 0, *size)
            case "incomplete":
                error = errors.from_incomplete(result.incomplete)
            case "error":
                error = errors.from_status(result.error)
            case other:
                error = errors.unexpected(other)
    except PolywandError as wrong:
        error = wrong
    return SegmentResult(result.object_id, outline, error)


def _detection(message: pb.Detection, answer: pb.DetectResponse) -> Detection:
    outline = None
    if message.HasField("shape"):
        outline = Outline(
            **_outline(message.shape, answer.image.width, answer.image.height),
            model=answer.polygons.model,
            version=answer.polygons.version,
            threshold=answer.polygons.threshold,
        )
    return Detection(message.label, message.model_label, message.score, _box(message.box), outline)


class _Tool(TypedDict):
    """The fields of `Outline` that say which tool made it."""

    model: str
    version: int
    threshold: float


class _OutlineFields(TypedDict):
    """The fields of `Outline` that the contract's `Shape` has, and the image's size."""

    polygons: tuple[Polygon, ...]
    box: Box | None
    area: float
    mask: NDArray[np.bool_] | None
    png: bytes
    width: int
    height: int
    tolerance: float
    iou: float


def _outline(shape: pb.Shape, width: int, height: int) -> _OutlineFields:
    try:
        mask = decode_rle(shape.rle.counts, shape.rle.width, shape.rle.height) if shape.HasField("rle") else None
    except ValueError as error:
        raise errors.ServerError(f"The server sent an invalid mask: {error}.", grpc.StatusCode.DATA_LOSS) from error
    return {
        "polygons": tuple(_polygon(polygon) for polygon in shape.polygons),
        "box": _box(shape.box) if shape.HasField("box") else None,
        "area": shape.area,
        "mask": mask,
        "png": shape.png,
        "width": width,
        "height": height,
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
