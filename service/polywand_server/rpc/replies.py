"""Replies: from the domain's results to protobuf messages."""

from collections.abc import Sequence

import numpy as np
import shapely

from polywand.v1 import annotation_pb2 as pb
from polywand_server.answers import Draining, ImageReady, Reply, Segmentation
from polywand_server.detectors.outlines import Outlines
from polywand_server.detectors.pipeline import Detection
from polywand_server.errors import PolywandError
from polywand_server.geometry.rings import vertices
from polywand_server.geometry.shapes import Shape
from polywand_server.images import Picture
from polywand_server.interactors.pipeline import max_points, reads_seed
from polywand_server.interactors.prompt import Missing
from polywand_server.registry import Detector
from polywand_server.rpc.status import to_status
from polywand_server.specs import DetectorSpec, InteractorSpec
from polywand_server.timing import Stopwatch
from polywand_server.tools import Tool

DRAINING_TEXT = "the server is draining: reconnect, any replica will do"

_BOX_USES = {"none": pb.BOX_USE_NONE, "optional": pb.BOX_USE_OPTIONAL, "required": pb.BOX_USE_REQUIRED}


def write_reply(reply: Reply) -> pb.InteractResponse:
    """Write one answer of an Interact stream."""
    response = pb.InteractResponse(sequence=reply.sequence, object_id=reply.object_id, skipped=reply.skipped)
    match reply.result:
        case ImageReady(width, height):
            response.image.CopyFrom(pb.ImageInfo(width=width, height=height))
        case Segmentation() as segmentation:
            _write_segmentation(segmentation, response.segmentation)
        case Missing() as lacking:
            response.incomplete.CopyFrom(
                pb.Incomplete(
                    message=str(lacking),
                    missing_positive_points=lacking.positive,
                    missing_negative_points=lacking.negative,
                    missing_extreme_points=lacking.extreme,
                    missing_box=lacking.box,
                )
            )
        case PolywandError() as error:
            response.error.CopyFrom(to_status(error))
        case Draining():
            response.draining.message = DRAINING_TEXT
    response.timing.CopyFrom(write_timing(reply.watch))
    return response


def write_detections(
    found: Sequence[Detection], outlines: Outlines | None, picture: Picture, tool: Detector, watch: Stopwatch
) -> pb.DetectResponse:
    """Write the answer to one frame."""
    response = pb.DetectResponse(
        image=pb.ImageInfo(width=picture.width, height=picture.height), model=tool.name, version=tool.version
    )
    for item in found:
        x0, y0, x1, y1 = item.box
        response.detections.add(
            label=item.label, model_label=item.model_label, score=item.score, box=pb.Box(x0=x0, y0=y0, x1=x1, y1=y1)
        )
    if outlines is not None:
        _write_outlines(outlines, picture, response)
    response.timing.CopyFrom(write_timing(watch))
    return response


def write_timing(watch: Stopwatch) -> pb.Timing:
    """Write where the time went."""

    def microseconds(seconds: float) -> int:
        return round(seconds * 1e6)

    stages = {f"{stage}_us": microseconds(seconds) for stage, seconds in watch.seconds.items()}
    return pb.Timing(
        received_unix_us=microseconds(watch.received_unix),
        total_us=microseconds(watch.total()),
        inferences=watch.inferences,
        **stages,
    )


def write_model(tool: Tool) -> pb.Model:
    """Write one tool of ListModels."""
    model = pb.Model(name=tool.name, ready=tool.ready, not_ready_reason=tool.reason)
    for version in tool.versions:
        model.versions.add(version=version.version, ready=version.ready, not_ready_reason=version.reason)
    spec = tool.spec
    if spec is None:
        return model
    model.display_name = spec.display_name
    model.help_message = spec.help_message
    model.animated_gif = spec.animated_gif
    model.license = spec.license
    model.weights_source = spec.weights_source
    model.default_threshold = spec.threshold
    match spec:
        case InteractorSpec(prompt=prompt):
            model.kind = pb.MODEL_KIND_INTERACTOR
            model.interactor.CopyFrom(
                pb.InteractorSpec(
                    min_positive_points=prompt.min_positive_points,
                    min_negative_points=prompt.min_negative_points,
                    extreme_points=prompt.extreme_points,
                    box=_BOX_USES[prompt.box],
                    max_points=max_points(prompt, tool.config) if tool.config else 0,
                    reads_seed=tool.config is not None and reads_seed(tool.config),
                )
            )
        case DetectorSpec(labels=labels):
            model.kind = pb.MODEL_KIND_DETECTOR
            model.detector.labels.extend(labels)
    return model


def _write_segmentation(segmentation: Segmentation, message: pb.Segmentation) -> None:
    message.model, message.version = segmentation.model, segmentation.version
    message.threshold = segmentation.threshold
    _write_shape(segmentation.shape, segmentation.width, segmentation.height, message.shape)


def _write_outlines(outlines: Outlines, picture: Picture, response: pb.DetectResponse) -> None:
    response.polygons.model, response.polygons.version = outlines.model, outlines.version
    response.polygons.threshold = outlines.threshold
    for shape, detection in zip(outlines.shapes, response.detections, strict=True):
        _write_shape(shape, picture.width, picture.height, detection.shape)


def _write_shape(shape: Shape, width: int, height: int, message: pb.Shape) -> None:
    """width, height: of the image."""
    message.area, message.tolerance, message.iou = shape.area, shape.tolerance, shape.iou
    if shape.rle is not None:
        message.mask.CopyFrom(pb.RleMask(width=width, height=height, counts=shape.rle))
    if shape.polygons.is_empty:
        return
    x0, y0, x1, y1 = shape.polygons.bounds
    message.box.CopyFrom(pb.Box(x0=x0, y0=y0, x1=x1, y1=y1))
    for part in shape.polygons.geoms:
        polygon = message.polygons.add()
        polygon.exterior.coordinates.extend(_coordinates(part.exterior))
        for hole in part.interiors:
            polygon.holes.add().coordinates.extend(_coordinates(hole))


def _coordinates(ring: shapely.LinearRing) -> list[float]:
    flat: list[float] = np.ravel(vertices(ring)).tolist()
    return flat
